"""One real four-node cluster for all tests here: skepds in namespaces, a real registry, real containers, the real docker client.

Removed at the end also when a test fails; the name carries the pid, so several runs do not meet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skep.local import calls, cluster
from skep.local.layout import Layout
from skep.local.registry import free_port

# a shell's background job begins with SIGINT ignored, and would hand that down to what is interrupted here
signal.signal(signal.SIGINT, signal.default_int_handler)

ECHO = "registry:5000/example/echo:latest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.root)


def docker_program() -> str | None:
    """A docker client, 26 or newer: on PATH, or as `make setup` unpacked it."""
    ours = Path(__file__).parents[2] / ".cache/tools/docker-cli/usr/bin/docker"
    for found in (shutil.which("docker"), str(ours) if ours.exists() else None):
        if found:
            said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
            version = re.search(r"version (\d+)", said)
            if version and int(version[1]) >= 26:
                return found
    return None


class World:
    """The running cluster and how to speak to it."""

    def __init__(self, at: Layout, port: int) -> None:
        self.at = at
        self.port = port
        """Of this host; leads to 8000 of the manager."""
        self.program = docker_program() or ""

    def docker(self, *argv: str, node: str = "manager", check: bool = True, timeout: float = 90) -> str:
        """What docker prints, talking to a node's socket (`node=""`: to the host socket)."""
        if not self.program:
            pytest.skip("no docker client, 26 or newer")
        socket = self.at.socket(node) if node else self.at.host_socket
        done = subprocess.run([self.program, "-H", f"unix://{socket}", *argv], capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(argv)}: {done.returncode}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def api(self, method: str, target: str, body: Any = None, *, node: str = "manager") -> Any:
        return calls.call(self.at.socket(node), method, target, body)

    def tasks(self, service: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("GET", f'/tasks?filters={{"service":["{service}"]}}')
        return found

    def running(self, service: str) -> list[dict[str, Any]]:
        """Running, and meant to."""
        return [t for t in self.tasks(service) if t["Status"]["State"] == "running" and t["DesiredState"] == "running"]

    def create(self, name: str, replicas: int, *, image: str = ECHO, **more: Any) -> None:
        spec: dict[str, Any] = {
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": {"Image": image, "StopGracePeriod": 1_000_000_000, **more.pop("container", {})},
                "RestartPolicy": {"Condition": "any", "Delay": 200_000_000},
                **more.pop("template", {}),
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
            **more,
        }
        self.api("POST", "/services/create", spec)

    def remove(self, name: str) -> None:
        self.api("DELETE", f"/services/{name}")
        self.until(lambda: not self.api("GET", f'/tasks?filters={{"name":["{name}."]}}'), f"{name}'s tasks are gone")

    def until(self, holds: Callable[[], Any], what: str, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while True:
            found = holds()
            if found:
                return found
            if time.monotonic() > end:
                tasks = [(t.get("Slot"), t.get("NodeID", "")[:6], t["DesiredState"], t["Status"]) for t in self.api("GET", "/tasks")]
                raise AssertionError(f"after {seconds:.0f} s still not so: {what}\n" + "\n".join(json.dumps(t) for t in tasks[:12]))
            time.sleep(0.03)


def make_world(name: str, **more: Any) -> World:
    port = free_port("127.0.0.1")
    stand_ins = more.pop("stand_ins", True)
    workers = more.pop("workers", 3)
    at = cluster.up(name, workers=workers, registry=True, stand_ins=stand_ins, publish=[(port, 8000)], say=lambda text: None, **more)
    return World(at, port)


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    name = f"t{os.getpid()}"
    try:
        yield make_world(name)
    finally:
        cluster.down(name, say=lambda text: None)
