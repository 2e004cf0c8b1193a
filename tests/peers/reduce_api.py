"""`python reduce_api.py v1.50.yaml > ../data/engine-api-1.50.json`: of the Docker Engine API's description (moby's api/docs, Apache-2.0;
see NOTICE) what a fuzzer needs: each call's parameters and body, and the shapes they name. Needs PyYAML, which nothing else here does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

KEPT = ("type", "format", "enum", "items", "properties", "additionalProperties", "required", "$ref", "allOf", "minimum", "maximum")
METHODS = ("get", "head", "post", "put", "delete")


def shape(schema: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in KEPT:
        value = schema.get(key)
        if value is None:
            continue
        if key == "properties":
            value = {name: shape(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            value = shape(value)
        elif key == "allOf":
            value = [shape(part) for part in value]
        elif key == "$ref":
            value = value.rpartition("/")[2]
        out[key] = value
    return out


def named(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(named, value.values()))
    return set().union(*map(named, value)) if isinstance(value, list) else set()


def reduce(api: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for path, methods in api["paths"].items():
        shared = methods.get("parameters", [])
        for method in METHODS:
            if method not in methods:
                continue
            call: dict[str, Any] = {"method": method.upper(), "path": path, "parameters": []}
            for parameter in shared + methods[method].get("parameters", []):
                if parameter["in"] == "body":
                    call["body"] = shape(parameter["schema"])
                else:
                    call["parameters"].append({"name": parameter["name"], "in": parameter["in"], **shape(parameter)})
            if consumes := methods[method].get("consumes"):
                call["consumes"] = consumes
            calls.append(call)
    shapes = {name: shape(schema) for name, schema in api["definitions"].items()}
    wanted, new = set(), named(calls)
    while new:
        wanted |= new
        new = named([shapes[name] for name in new]) - wanted
    return {"calls": calls, "shapes": {name: shapes[name] for name in sorted(wanted)}}


def main() -> None:
    import yaml

    with open(sys.argv[1]) as source:
        reduced = reduce(yaml.safe_load(source))
    head = json.dumps(
        "Reduced by tests/peers/reduce_api.py from the Docker Engine API v1.50 (github.com/moby/moby, api/docs/v1.50.yaml), Apache-2.0"
    )
    lines = [",\n".join(json.dumps(call) for call in reduced["calls"])]
    shapes = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in reduced["shapes"].items())
    print(f'{{"from": {head},\n"calls": [\n{lines[0]}\n],\n"shapes": {{\n{shapes}\n}}}}')


if __name__ == "__main__":
    main()
