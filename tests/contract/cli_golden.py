"""What the docker CLI sends and prints for a list of command lines, and the same of skep: in one form, so that they can be compared.

Recorded by `python tests/contract/cli_golden.py` with a docker CLI 28 on PATH, against the engine of cli_engine.py; the words "docker" are
turned into skep's. What Go leaves to chance (the order of maps) is put in order on both sides. Of an update only the fields that it changes
are kept, of a new container's config those that are other than without flags (`create` in node.json).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cli_engine import FakeEngine
from cli_node import NODE

DATA = Path(__file__).resolve().parent.parent / "data" / "cli"
TABLES = ("commands", "node")
"""Command lines of the cluster, and of containers, images and volumes: `commands.txt` and `golden.jsonl`, `node.txt` and `node.jsonl`."""
ENVIRON = {"FOO": "bar", "TZ": "UTC"}


def golden(table: str) -> Path:
    return DATA / ("golden.jsonl" if table == "commands" else f"{table}.jsonl")


def commands(table: str) -> list[str]:
    return [line for line in (DATA / f"{table}.txt").read_text().splitlines() if line and not line.startswith("#")]


def words(line: str) -> list[str]:
    return shlex.split(line.replace("{data}", str(DATA)))


def plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.replace(str(DATA), "{data}").split("\n"))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {key: found for name, item in value.items() for key, found in flat(item, f"{path}.{name}" if path else name).items()}
    return {path: value}


def in_order(spec: dict[str, Any], update: bool) -> None:
    template = spec.get("TaskTemplate") or {}
    container = template.get("ContainerSpec") or {}
    for name in ("Mounts", "Secrets", "Configs", *(["Env"] if update else [])):
        if name in container:
            container[name].sort(key=lambda item: json.dumps(item, sort_keys=True))
    resources = ((template.get("Resources") or {}).get("Reservations") or {}).get("GenericResources")
    if resources:
        resources.sort(key=str)


def creation(body: dict[str, Any]) -> dict[str, Any]:
    """Go keeps binds and the environment in maps; of an endpoint most is empty."""
    body = json.loads(json.dumps(body))
    for where, key in ((body["HostConfig"], "Binds"), (body, "Env")):
        where[key] = where[key] and sorted(where[key])
    endpoints = body["NetworkingConfig"]["EndpointsConfig"]
    for name, endpoint in endpoints.items():
        endpoints[name] = {key: value for key, value in endpoint.items() if value not in (None, "", 0)}
    return flat(body)


def requests(engine: FakeEngine) -> list[dict[str, Any]]:
    found = []
    for request in engine.requests:
        request = json.loads(json.dumps(request).replace(str(DATA), "{data}").replace(os.getcwd(), "{here}"))
        path = request["path"]
        if path.startswith("/services/") and request["method"] == "POST":
            in_order(request["body"], path.endswith("/update"))
        if path.startswith("/services/") and path.endswith("/update"):
            before = json.loads(json.dumps(engine.one("services", path.split("/")[2])["Spec"]))
            in_order(before, True)
            old, new = flat(before), flat(request.pop("body"))
            request["changes"] = {key: new.get(key) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
        if path == "/containers/create":
            plainly, asked = creation(NODE["create"]), creation(request.pop("body"))
            request["changes"] = {
                key: asked.get(key, "absent")
                for key in sorted({*plainly, *asked})
                if plainly.get(key, "absent") != asked.get(key, "absent")
            }
        found.append({key: value for key, value in request.items() if value not in (None, {})})
    return found


def skeps(text: str) -> str:
    return text.replace("docker: ", "skep: ").replace("docker ", "skep ").replace("`docker ", "`skep ")


def record(table: str) -> None:
    with golden(table).open("w") as out, tempfile.TemporaryDirectory() as folder:
        for line in commands(table):
            with FakeEngine(Path(folder) / "engine.sock") as engine:
                env = {"PATH": os.environ["PATH"], "HOME": folder, "DOCKER_HOST": f"unix://{engine.path}", **ENVIRON}
                now = time.time_ns()
                done = subprocess.run(["docker", *words(line)], env=env, capture_output=True, text=True, input="", timeout=60, check=False)
                found = {
                    "line": line,
                    "now": now,
                    "code": done.returncode,
                    "out": skeps(plain(done.stdout)),
                    "err": skeps(plain(done.stderr)),
                    "requests": requests(engine),
                }
                out.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        record(name)
