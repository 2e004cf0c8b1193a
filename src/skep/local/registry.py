"""A real registry (Debian's docker-registry) as a child process with its own data and port. For the one-machine cluster and for tests.

Nothing is installed for it: the program is found on PATH or where `make setup` unpacked it. It keeps its log, with one line per request,
beside its data.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from skep.errors import NotFound, SkepError, Unavailable
from skep.local.layout import Layout
from skep.local.process import NODEINIT

PORT = 5000
READY_WITHIN = 60.0
"""Seconds."""
TRIES = 5


def find_tool(name: str) -> Path:
    """A program that the project does not install: in $SKEP_TOOLS, this checkout's .cache/tools, /usr/lib/skep/tools, PATH.

    Raises NotFound with what to do.
    """
    for folder in _tool_folders():
        for found in sorted([folder / name, *folder.glob(f"**/bin/{name}"), *folder.glob(f"**/sbin/{name}")]):
            if found.is_file() and os.access(found, os.X_OK):
                return found
    on_path = shutil.which(name)
    if on_path is None:
        raise NotFound(f"{name} is not here: run `make setup`, or put it on PATH or into the folder that $SKEP_TOOLS names")
    return Path(on_path)


def _tool_folders() -> list[Path]:
    own = os.environ.get("SKEP_TOOLS", "")
    checkout = Path(__file__).resolve().parents[3] / ".cache" / "tools"
    return [folder for folder in [*([Path(own)] if own else []), checkout, Path("/usr/lib/skep/tools")] if folder.is_dir()]


def write_config(data: Path, address: str, *, htpasswd: Path | None = None) -> Path:
    """The registry's configuration below `data`; JSON is YAML."""
    data.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(data / "data")}, "delete": {"enabled": True}},
        "http": {"addr": address, "secret": secrets.token_hex(16)},
    }
    if htpasswd is not None:
        config["auth"] = {"htpasswd": {"realm": "registry", "path": str(htpasswd)}}
    path = data / "config.yml"
    path.write_text(json.dumps(config, indent=1))
    path.chmod(0o600)
    return path


class RegistryServer:
    """A registry on this host, in the foreground of whoever made it: `with RegistryServer(folder) as registry`.

    `port` 0 takes a free one. SIGTERM ends it at once; it also dies with a starter that is killed, where setpriv is there.
    """

    def __init__(self, data: Path, *, host: str = "127.0.0.1", port: int = 0, htpasswd: Path | None = None) -> None:
        self.data = data
        self.host = host
        self.port = port
        self._fixed = port != 0
        self._htpasswd = htpasswd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def log(self) -> Path:
        return self.data / "registry.log"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def __enter__(self) -> RegistryServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers. Raises Unavailable with the end of its log."""
        program = str(find_tool("docker-registry"))
        setpriv = shutil.which("setpriv")
        bound = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        for attempt in range(TRIES):
            if not self._fixed:
                self.port = free_port(self.host)
            config = write_config(self.data, self.address, htpasswd=self._htpasswd)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [*bound, program, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            try:
                wait_until_ready(self.host, self.port, alive=lambda: self._process is not None and self._process.poll() is None)
                return
            except Unavailable:
                self.stop()
                if self._fixed or attempt == TRIES - 1:
                    raise Unavailable(f"the registry at {self.address} did not start: {last_lines(self.log)}") from None

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    def requests(self) -> list[tuple[str, str, int]]:
        """(method, path, status) of all requests so far, from its log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            parts = line.split('"')
            if len(parts) >= 3 and parts[1].endswith(("HTTP/1.1", "HTTP/1.0")):
                method, path, _ = parts[1].split(" ")
                found.append((method, path, int(parts[2].split()[0])))
        return found


def start_registry(at: Layout) -> None:
    """The registry of a one-machine cluster, in the network namespace and the cgroup that the cluster made for it; `down` ends it."""
    data = at.data("registry")
    config = write_config(data, f"0.0.0.0:{PORT}")
    job: Mapping[str, Any] = {
        "cgroups": [str(folder) for folder in at.cgroups("registry")],
        "ns": [str(at.namespace("registry", "net"))],
        "argv": [str(find_tool("docker-registry")), "serve", str(config)],
        "detach": True,
    }
    log_file = data / "registry.log"
    with log_file.open("ab") as log:
        subprocess.run(
            [sys.executable, "-I", "-S", NODEINIT, json.dumps(job)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
        )
    try:
        wait_until_ready(at.registry_address, PORT)
    except Unavailable:
        raise Unavailable(f"the registry did not start: {last_lines(log_file)}") from None


def wait_until_ready(host: str, port: int, *, alive: Any = lambda: True, within: float = READY_WITHIN) -> None:
    """Until `GET /v2/` is answered (401 is an answer). Raises Unavailable."""
    end = time.monotonic() + within
    while True:
        try:
            if ping(host, port) in (200, 401):
                return
        except OSError:
            pass
        if not alive() or time.monotonic() > end:
            raise Unavailable(f"no registry answers at {host}:{port}")
        time.sleep(0.01)


def ping(host: str, port: int) -> int:
    """Status of `GET /v2/`. Raises OSError."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def last_lines(path: Path, count: int = 3) -> str:
    try:
        return " | ".join(path.read_text(errors="replace").strip().splitlines()[-count:]) or "it said nothing"
    except OSError as error:
        raise SkepError(f"{path}: {error.strerror}") from None
