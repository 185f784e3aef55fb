"""Protocol buffer and gRPC code generation with Debian's protoc and grpc_cpp_plugin."""

def cc_grpc_library(name, srcs, root, deps = [], import_roots = [], visibility = None):
    """Compiles .proto files into a cc_library of their messages, and one of their services.

    Args:
      name: the library of the services, and with "_messages" that of the messages, without gRPC.
      srcs: .proto files of this package.
      root: the folder, below this package, that import paths start from ("" = the workspace root).
      deps: other cc_grpc_library targets that the .proto files import.
      import_roots: the roots of those, from the workspace's, if they are not this library's own.
      visibility: as usual.
    """
    messages = []
    services = []
    for src in srcs:
        stem = src[:-len(".proto")]
        messages += [stem + ".pb.h", stem + ".pb.cc"]
        services += [stem + ".grpc.pb.h", stem + ".grpc.pb.cc"]
    native.filegroup(
        name = name + "_protos",
        srcs = srcs + [dep + "_protos" for dep in deps],
        visibility = visibility,
    )
    native.genrule(
        name = name + "_generated",
        srcs = srcs + [dep + "_protos" for dep in deps],
        outs = messages + services,
        cmd = " ".join(
            ["protoc -I" + root] + ["-I" + other for other in import_roots] + [
                "--cpp_out=$(GENDIR)/" + root,
                "--grpc_out=$(GENDIR)/" + root,
                "--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin",
            ] + ["$(location %s)" % src for src in srcs],
        ),
        message = "Generating protocol buffers",
    )
    native.cc_library(
        name = name + "_messages",
        srcs = [out for out in messages if out.endswith(".cc")],
        hdrs = [out for out in messages if out.endswith(".h")],
        copts = ["-w"],  # generated code
        includes = ["."],
        visibility = visibility,
        deps = [dep + "_messages" for dep in deps] + ["@system//:protobuf"],
    )
    native.cc_library(
        name = name,
        srcs = [out for out in services if out.endswith(".cc")],
        hdrs = [out for out in services if out.endswith(".h")],
        copts = ["-w"],  # generated code
        includes = ["."],
        visibility = visibility,
        deps = deps + [":" + name + "_messages", "@system//:grpcpp"],
    )
