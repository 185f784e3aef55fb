"""Protocol buffer and gRPC code generation with Debian's protoc and grpc_cpp_plugin."""

def cc_grpc_library(name, srcs, root, deps = [], visibility = None):
    """Compiles .proto files and their services into one cc_library.

    Args:
      name: the library.
      srcs: .proto files of this package.
      root: the folder, below this package, that import paths start from ("" = the workspace root).
      deps: other cc_grpc_library targets that the .proto files import.
      visibility: as usual.
    """
    outs = []
    for src in srcs:
        stem = src[:-len(".proto")]
        outs += [stem + suffix for suffix in [".pb.h", ".pb.cc", ".grpc.pb.h", ".grpc.pb.cc"]]
    native.genrule(
        name = name + "_generated",
        srcs = srcs,
        outs = outs,
        cmd = ("protoc -I{root} --cpp_out=$(GENDIR)/{root} --grpc_out=$(GENDIR)/{root} " +
               "--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin $(SRCS)").format(root = root),
        message = "Generating protocol buffers",
    )
    native.cc_library(
        name = name,
        srcs = [out for out in outs if out.endswith(".cc")],
        hdrs = [out for out in outs if out.endswith(".h")],
        copts = ["-w"],  # generated code
        includes = ["."],
        visibility = visibility,
        deps = deps + ["@system//:grpcpp", "@system//:protobuf"],
    )
