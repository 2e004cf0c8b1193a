"""What the engine of cli_engine.py answers about a node's own containers, images and volumes (tests/data/cli/node.json).

Names decide: `run`ning an image called `missing:1` needs a pull, an image `noexec` cannot be started, `exit3` ends with 3, a container
`tty` has a terminal, `stopped` does not run.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any, Protocol

NODE = json.loads((Path(__file__).resolve().parent.parent / "data" / "cli" / "node.json").read_text())
CREATED = "c" * 64
KNOWN = frozenset(["c1", "c2", "tty", "stopped", "paused", "closed", "exit3", "running", "warn", CREATED])
KNOWN_IMAGES = ("alpine", "busybox", "local:1", "10.0.99.1:5000/web")


class Handler(Protocol):
    command: str
    wfile: Any
    headers: Any
    close_connection: bool
    engine: Any

    def _json(self, status: int, body: Any) -> None: ...
    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None: ...
    def _error(self, status: int, message: str) -> None: ...


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


def answer(handler: Handler, path: str, query: dict[str, str], body: Any) -> bool:
    """False for what is not the node's."""
    words = path.strip("/").split("/")
    match words[0]:
        case "containers":
            _containers(handler, words, query, body)
        case "images":
            _images(handler, words, query)
        case "volumes":
            _volumes(handler, words, body)
        case "system":
            handler._json(200, NODE["df"])
        case "build":
            handler._json(200, {"CachesDeleted": None, "SpaceReclaimed": 0})
        case "auth":
            if body["password"] == "wrong":
                handler._error(401, 'Get "https://registry.example/v2/": unauthorized')
            else:
                handler._json(200, {"Status": "Login Succeeded", "IdentityToken": ""})
        case _:
            return False
    return True


def _containers(handler: Handler, words: list[str], query: dict[str, str], body: Any) -> None:
    world = handler.engine.world
    if words[1] == "json":
        handler._json(200, world["containers"])
    elif words[1] == "create":
        _create(handler, body)
    elif words[1] == "prune":
        handler._json(200, {"ContainersDeleted": [CREATED, "d" * 64], "SpaceReclaimed": 12345678})
    elif words[1] not in KNOWN and words[1] != world["container"]["Id"]:
        handler._error(404, f"No such container: {words[1]}")
    elif handler.command == "DELETE":
        if words[1] == "running":
            handler._error(
                409, 'cannot remove container "running": container is running: stop the container before removing or force remove'
            )
        else:
            handler._send(204, b"")
    else:
        _container(handler, words[1], words[2], query)


def _create(handler: Handler, body: Any) -> None:
    image = body["Image"]
    pulled = any(request["path"] == "/images/create" for request in handler.engine.requests)
    if image.startswith("missing") and not pulled:
        handler._error(404, f"No such image: {image}")
    elif image == "conflict":
        handler._error(409, 'Conflict. The container name "/x" is already in use by container "abc".')
    else:
        handler.engine.created = body
        handler._json(201, {"Id": CREATED, "Warnings": ["Mind the step"] if image == "warn" else []})


def inspected(engine: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(engine.world["container"]))
    if name == "c1" or len(name) == 64:
        return found
    found["Id"] = name
    found["Config"]["Tty"] = name == "tty"
    found["Config"]["OpenStdin"] = name != "closed"
    found["State"]["Running"] = name != "stopped"
    found["State"]["Paused"] = name == "paused"
    found["NetworkSettings"]["Ports"] = {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9090"}, {"HostIp": "::", "HostPort": "9090"}],
        "443/udp": [{"HostIp": "127.0.0.1", "HostPort": "443"}],
        "90/tcp": None,
    }
    return found


def _container(handler: Handler, name: str, verb: str, query: dict[str, str]) -> None:
    created = getattr(handler.engine, "created", None) or {}
    image = created.get("Image", "")
    match verb:
        case "json":
            handler._json(200, inspected(handler.engine, name))
        case "logs":
            kind = "application/vnd.docker.multiplexed-stream"
            handler._send(200, frame(1, b"line1\n") + frame(2, b"line2\n"), {"Content-Type": kind})
        case "exec":
            handler._json(201, {"Id": "e" * 64})
        case "attach":
            _attach(handler, bool(created.get("Tty")) or name == "tty", query)
        case "wait":
            status = 3 if "exit3" in (image, name) else 0
            handler._json(200, {"StatusCode": status})
        case "start" if image == "noexec":
            handler._error(400, 'failed to create task for container: exec: "nope": executable file not found in $PATH: unknown')
        case "start" if image == "noperm":
            handler._error(400, 'failed to create task for container: exec: "/etc": permission denied: unknown')
        case "update":
            handler._json(200, {"Warnings": ["Mind the swap"] if name == "warn" else []})
        case "top":
            handler._json(200, NODE["top"])
        case "stats":
            handler._json(200, {**NODE["stats"], "name": f"/{name}"})
        case "changes":
            handler._json(200, NODE["changes"])
        case "export":
            handler._send(200, b"a tar, say\n", {"Content-Type": "application/x-tar"})
        case "archive":
            _archive(handler, query["path"])
        case "stop" | "restart" if name == "stopped":
            handler._send(304, b"")
        case "pause" if name == "paused":
            handler._error(409, "Container paused is already paused")
        case _:
            handler._send(204, b"")


def _attach(handler: Handler, tty: bool, query: dict[str, str]) -> None:
    kind = "raw" if tty else "multiplexed"
    head = ["HTTP/1.1 101 UPGRADED", f"Content-Type: application/vnd.docker.{kind}-stream", "Connection: Upgrade", "Upgrade: tcp"]
    handler.wfile.write("\r\n".join([*head, "", ""]).encode())
    streams = (("stdout", frame(1, b"out\n")), ("stderr", frame(2, b"err\n")))
    handler.wfile.write(b"out\r\nerr\r\n" if tty else b"".join(data for name, data in streams if name in query))
    handler.close_connection = True


def _archive(handler: Handler, path: str) -> None:
    if path.rstrip("/").endswith("nosuch"):
        handler._error(404, f"Could not find the file {path} in container c1")
        return
    directory = path.endswith("dir") or path in ("/", "/tmp/")
    stat = {
        "name": path.rpartition("/")[2],
        "size": 5,
        "mode": 0x800001ED if directory else 0o644,
        "mtime": "2026-11-23T03:52:06Z",
        "linkTarget": "",
    }
    header = {"X-Docker-Container-Path-Stat": base64.b64encode(json.dumps(stat).encode()).decode()}
    handler._send(200, archive(stat["name"]) if handler.command == "GET" else b"", {**header, "Content-Type": "application/x-tar"})


def archive(name: str) -> bytes:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    return out.getvalue()


def _stream(handler: Handler, messages: list[dict[str, Any]]) -> None:
    handler._send(200, b"".join(json.dumps(message).encode() + b"\r\n" for message in messages), {"Content-Type": "application/json"})


def _images(handler: Handler, words: list[str], query: dict[str, str]) -> None:
    name = "/".join(words[1:-1])
    if words[1:] == ["json"]:
        handler._json(200, NODE["images"])
    elif words[1] == "create":
        if query.get("fromSrc"):
            _stream(handler, [{"status": "sha256:" + "77" * 32}])
        elif "nosuch" in query["fromImage"]:
            handler._error(404, "manifest for nosuch:latest not found: manifest unknown: manifest unknown")
        elif "broken" in query["fromImage"]:
            _stream(handler, [NODE["pull"][0], {"errorDetail": {"message": "no space left on device"}, "error": "no space left on device"}])
        else:
            _stream(handler, NODE["pull"])
    elif words[1] == "load":
        _stream(handler, [{"stream": "Loaded image: alpine:3.20\n"}])
    elif words[1] == "prune":
        handler._json(200, {"ImagesDeleted": NODE["delete"], "SpaceReclaimed": 7800000})
    elif words[1] == "get":
        handler._send(200, b"a tar, say\n", {"Content-Type": "application/x-tar"})
    elif not (name or "/".join(words[1:])).startswith(KNOWN_IMAGES):
        handler._error(404, f"no such images: {words[1]}")
    elif handler.command == "DELETE":
        handler._json(200, NODE["delete"] if words[1] != "local:1" else [{"Untagged": "local:1"}])
    elif words[-1] == "json":
        handler._json(200, NODE["image"])
    elif words[-1] == "history":
        handler._json(200, NODE["history"])
    elif words[-1] == "push":
        _stream(handler, NODE["push"])
    elif words[-1] == "tag":
        handler._send(201, b"")
    else:
        handler._send(200, b"a tar, say\n", {"Content-Type": "application/x-tar"})


def _volumes(handler: Handler, words: list[str], body: Any) -> None:
    known = {volume["Name"]: volume for volume in NODE["volumes"]["Volumes"]}
    if len(words) == 1:
        handler._json(200, NODE["volumes"])
    elif words[1] == "create":
        handler._json(201, {**known["vol1"], "Name": body.get("Name") or "0b" * 32})
    elif words[1] == "prune":
        handler._json(200, {"VolumesDeleted": ["0a" * 32, "vol1"], "SpaceReclaimed": 123533})
    elif words[1] not in known:
        handler._error(404, f"get {words[1]}: no such volume")
    elif handler.command == "DELETE":
        handler._send(204, b"")
    else:
        handler._json(200, known[words[1]])
