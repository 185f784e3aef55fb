"""The object files behind a library."""

def _objects_of(targets):
    objects = []
    for target in targets:
        for linker_input in target[CcInfo].linking_context.linker_inputs.to_list():
            for library in linker_input.libraries:
                objects += library.pic_objects
    return objects

def _library_objects_impl(ctx):
    without = {object: None for object in _objects_of(ctx.attr.without)}
    objects = [object for object in _objects_of(ctx.attr.deps) if object not in without]
    if not objects:
        fail("the libraries have no objects of their own")
    return [DefaultInfo(files = depset(objects))]

library_objects = rule(
    implementation = _library_objects_impl,
    attrs = {
        "deps": attr.label_list(mandatory = True, providers = [CcInfo]),
        # What stands in a library of its own, with all that it needs.
        "without": attr.label_list(providers = [CcInfo]),
    },
    doc = """The position-independent objects of libraries and of all of ours that they need.

A cc_library's own archive holds one target's objects each, and a linker takes from an archive only
what is referred to; nothing refers to the face of a shared library that is being linked.""",
)
