"""The object files behind a library."""

def _library_objects_impl(ctx):
    objects = []
    for dep in ctx.attr.deps:
        for linker_input in dep[CcInfo].linking_context.linker_inputs.to_list():
            for library in linker_input.libraries:
                objects += library.pic_objects
    if not objects:
        fail("the libraries have no objects of their own")
    return [DefaultInfo(files = depset(objects))]

library_objects = rule(
    implementation = _library_objects_impl,
    attrs = {
        "deps": attr.label_list(mandatory = True, providers = [CcInfo]),
    },
    doc = """The position-independent objects of libraries and of all of ours that they need.

A cc_library's own archive holds one target's objects each, and a linker takes from an archive only
what is referred to; nothing refers to the face of a shared library that is being linked.""",
)
