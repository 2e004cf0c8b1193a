"""An engine for the tests of the CLI: answers from a recorded cluster (tests/data/cli/world.json), and keeps every request.

It changes nothing: what a command sends is what the test looks at. `script` gives successive answers to a GET, for what a progress display
watches; the last one stays.
"""

from __future__ import annotations

import base64
import copy
import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import cli_node
from cli_node import frame

WORLD = Path(__file__).resolve().parent.parent / "data" / "cli" / "world.json"
NEW_ID = "n3wn3wn3wn3wn3wn3wn3wn3wn"


class FakeEngine:
    """Serves on a unix socket while it is entered."""

    def __init__(self, path: Path, world: dict[str, Any] | None = None) -> None:
        self.path = path
        self.world = world if world is not None else json.loads(WORLD.read_text())
        self.requests: list[dict[str, Any]] = []
        self.script: dict[str, list[Any]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        """`METHOD /path` -> (status, message)."""

    def __enter__(self) -> FakeEngine:
        engine = self

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                """A client that has gone does not wait for the rest."""

        class Handler(_Handler):
            pass

        Handler.engine = engine
        self.server = Server(str(self.path), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        self.path.unlink(missing_ok=True)

    # looking things up

    def one(self, table: str, name: str) -> Any:
        key = "Id" if table == "networks" else "ID"
        objects = self.world[table]
        for test in (lambda o: o[key] == name, lambda o: self.name(table, o) == name, lambda o: o[key].startswith(name)):
            found = [o for o in objects if test(o)]
            if found:
                return found[0]
        return None

    @staticmethod
    def name(table: str, o: dict[str, Any]) -> str:
        if table == "nodes":
            return str(o["Description"]["Hostname"])
        return str(o["Name"] if table == "networks" else o["Spec"]["Name"] if "Name" in o.get("Spec", {}) else o["ID"])

    def many(self, table: str, filters: dict[str, Any]) -> list[Any]:
        found = []
        for o in self.world[table]:
            if "id" in filters and not any(o["Id" if table == "networks" else "ID"].startswith(v) for v in filters["id"]):
                continue
            if "name" in filters and not any(self.name(table, o).startswith(v) for v in filters["name"]):
                continue
            if "service" in filters and o.get("ServiceID") not in filters["service"]:
                continue
            if "node" in filters and o.get("NodeID") not in filters["node"]:
                continue
            if "desired-state" in filters and o.get("DesiredState") not in filters["desired-state"]:
                continue
            found.append(o)
        return found


class _Handler(BaseHTTPRequestHandler):
    engine: FakeEngine
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def _do(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path.startswith("/v1."):
            path = "/" + path.split("/", 2)[2]
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body: Any = self.rfile.read(length) if length else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if path == "/_ping":
            self._send(200, b"OK", {"Api-Version": "1.50", "Ostype": "linux", "Content-Type": "text/plain"})
            return
        parsed = json.loads(body) if body and self.headers.get("Content-Type", "").startswith("application/json") else None
        filters = json.loads(query["filters"]) if query.get("filters") else {}
        if not filters:
            query.pop("filters", None)
        seen = {"method": self.command, "path": path, "query": {**query, **({"filters": filters} if filters else {})}, "body": parsed}
        seen["query"].update({key: values for key, values in parse_qs(url.query).items() if len(values) > 1})
        if self.headers.get("X-Registry-Auth"):
            seen["auth"] = self.headers["X-Registry-Auth"]
        self.engine.requests.append(seen)
        if f"{self.command} {path}" in self.engine.refuse:
            self._error(*self.engine.refuse[f"{self.command} {path}"])
            return
        script = self.engine.script.get(path) if self.command == "GET" else None
        if script:
            self._json(200, script.pop(0) if len(script) > 1 else script[0])
            return
        self._answer(path, query, filters, parsed)

    do_GET = do_POST = do_DELETE = do_HEAD = do_PUT = _do

    def _answer(self, path: str, query: dict[str, str], filters: dict[str, Any], body: Any) -> None:
        world = self.engine.world
        words = path.strip("/").split("/")
        table = words[0]
        if path in ("/info", "/version", "/swarm"):
            self._json(200, world[table])
        elif path == "/swarm/unlockkey":
            self._json(200, world["unlockkey"])
        elif path == "/swarm/init":
            self._json(200, "l07m6eu3vqgda08o75tjzp443")
        elif table == "swarm":
            self._send(200, b"")
        elif table == "distribution":
            self._distribution("/".join(words[1:-1]))
        elif table == "events":
            self._send(200, b"".join(json.dumps(event).encode() + b"\n" for event in world["events"]), {"Content-Type": "application/json"})
        elif cli_node.answer(self, path, query, body):
            pass
        elif table == "exec":
            self._exec(words)
        elif words[-1] == "logs":
            self._logs(words, query)
        elif table == "plugins":
            self._error(404, f"no such {table}: {words[1]}")
        elif table in world and len(words) == 1:
            found = copy.deepcopy(self.engine.many(table, filters))
            if table == "services" and query.get("status") != "true":
                for service in found:
                    del service["ServiceStatus"]
            self._json(200, found)
        elif table in world:
            self._object(table, words)
        else:
            self._error(404, "page not found")

    def _object(self, table: str, words: list[str]) -> None:
        if table == "networks" and words[1:] == ["create"]:
            self._json(201, {"Id": NEW_ID, "Warning": ""})
            return
        if words[1:] == ["prune"]:
            self._json(200, {"NetworksDeleted": ["net1", "demo_front"]})
            return
        if words[1:] == ["create"]:
            self._json(201, {"ID": NEW_ID, "Warnings": None})
            return
        found = self.engine.one(table, words[1])
        if found is None and words[1] == NEW_ID and table == "services":
            found = {**self.engine.one(table, "web"), "ID": NEW_ID}
        if found is None:
            self._error(404, f"{table[:-1]} {words[1]} not found")
        elif self.command == "GET":
            self._json(200, {key: value for key, value in found.items() if key != "ServiceStatus"})
        elif words[-1] == "update" and table == "services":
            self._json(200, {"Warnings": None})
        else:
            self._send(200, b"")

    def _distribution(self, image: str) -> None:
        known = self.engine.world["distribution"].get(image)
        if known:
            self._json(200, known)
        else:
            self._error(500, 'Get "https://registry.example/v2/": dial tcp: connect: network is unreachable')

    def _exec(self, words: list[str]) -> None:
        if words[2] == "json":
            self._json(200, {"ID": words[1], "Running": False, "ExitCode": 4})
        elif words[2] == "start" and self.headers.get("Upgrade"):
            head = [
                "HTTP/1.1 101 UPGRADED",
                "Content-Type: application/vnd.docker.multiplexed-stream",
                "Connection: Upgrade",
                "Upgrade: tcp",
            ]
            self.wfile.write("\r\n".join([*head, "", ""]).encode())
            self.wfile.write(frame(1, b"out\n") + frame(2, b"err\n"))
            self.close_connection = True
        else:
            self._send(200, b"")

    def _logs(self, words: list[str], query: dict[str, str]) -> None:
        if self.engine.one(words[0], words[1]) is None:
            self._error(404, f"{words[0][:-1]} {words[1]} not found")
            return
        data = base64.b64decode(self.engine.world["logs"]["details"])
        if query.get("details") != "1":
            data = frame(1, b"out1\n") + frame(2, b"err1\n")
        self._send(200, data, {"Content-Type": "application/vnd.docker.multiplexed-stream"})

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"message": message})

    def _json(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode() + b"\n", {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
