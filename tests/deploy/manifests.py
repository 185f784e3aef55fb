"""Checks Kubernetes manifests against the published API, and prints them as a JSON list.

usage: manifests.py <MANIFESTS.yaml

The API is that of the official Python client (Debian: python3-kubernetes), which is generated from Kubernetes' OpenAPI
document. Every field must exist and have its type, and every required field be there. Exits 1 with one line a problem.
"""

import datetime
import json
import re
import sys

import yaml
from kubernetes.client import models

PRIMITIVES = {"str": str, "int": int, "float": (int, float), "bool": bool, "datetime": datetime.datetime}


def problems(value, type_name, path):
    """Yields what is wrong with `value` as the client's type `type_name`, such as list[V1Container]."""
    collection = re.fullmatch(r"(list|dict)(?:\[|\(str, )(.*)[\])]", type_name)
    if collection:
        kind, element = collection.groups()
        if not isinstance(value, {"list": list, "dict": dict}[kind]):
            yield "%s: %r is no %s" % (path, value, kind)
            return
        for key, item in enumerate(value) if kind == "list" else value.items():
            yield from problems(item, element, "%s[%s]" % (path, key))
    elif type_name in PRIMITIVES:
        # Python's True is an int; YAML's is not.
        if not isinstance(value, PRIMITIVES[type_name]) or (isinstance(value, bool) and type_name != "bool"):
            yield "%s: %r is no %s" % (path, value, type_name)
    elif type_name != "object":  # an int or a string, a quantity: anything
        model = getattr(models, type_name)
        if not isinstance(value, dict):
            yield "%s: %r is no %s" % (path, value, type_name)
            return
        types = {json_name: model.openapi_types[name] for name, json_name in model.attribute_map.items()}
        for key, item in value.items():
            if key not in types:
                yield "%s: %s has no field %s" % (path, type_name, key)
            else:
                yield from problems(item, types[key], "%s.%s" % (path, key))
        names = {json_name: name for name, json_name in model.attribute_map.items()}
        try:  # the constructor refuses None for what is required, and values outside of an enumeration
            model(**{names[key]: item for key, item in value.items() if key in names})
        except ValueError as error:
            yield "%s: %s" % (path, error)


def model_of(manifest):
    """The client's name of an apiVersion and a kind: apps/v1 DaemonSet is V1DaemonSet."""
    version = manifest["apiVersion"].split("/")[-1]
    return version.capitalize() + manifest["kind"]


def main():
    manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest is not None]
    found = 0
    for manifest in manifests:
        for problem in problems(manifest, model_of(manifest), manifest["kind"]):
            print(problem, file=sys.stderr)
            found += 1
    json.dump(manifests, sys.stdout, indent=1)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
