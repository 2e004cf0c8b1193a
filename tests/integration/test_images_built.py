"""The images built from files: the echo of the tutorial answers as a web server must, and the same files give the same digests."""

from __future__ import annotations

import ctypes
import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skep.errors import NotFound
from skep.local.build import Built
from skep.local.images import OWN, STAND_INS, build_bench_image, build_echo_image, push_images
from skep.local.registry import RegistryServer, find_tool, free_port


def unpacked(built: Built, root: Path) -> Path:
    """The image's files as a root directory (these layers have no whiteouts)."""
    root.mkdir()
    for blob in list(built.blobs.values())[1:]:
        subprocess.run(["tar", "-xz", "-C", str(root)], input=blob, check=True)
    return root


class Running:
    """An image's command, chrooted, first process of a pid namespace of its own."""

    def __init__(self, root: Path, *argv: str) -> None:
        self._dev = root / "dev"
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"/dev", os.fsencode(self._dev), None, 4096, None) == 0
        self._umount = lambda: libc.umount2(os.fsencode(self._dev), 2)
        self.log = root.with_suffix(".log")
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                ["unshare", "--fork", "--pid", "--kill-child", "chroot", str(root), *argv], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    @property
    def pid(self) -> int:
        """Of the command itself, as this host sees it."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._umount()


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[tuple[Running, int]]:
    port = free_port("127.0.0.1")
    running = Running(unpacked(build_echo_image(), tmp_path / "root"), "/usr/local/bin/serve", str(port))
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end and running.process.poll() is None, running.log.read_text()
        yield running, port
    finally:
        running.close()


def ask(port: int, method: str = "GET", path: str = "/", body: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        assert answer.version == 11
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.root
def test_echo_answers_every_path_and_logs_it(echo: tuple[Running, int]) -> None:
    running, port = echo
    for path in ("/", "/any/path?x=1", "/%00*"):
        status, body, headers = ask(port, path=path)
        assert (status, body, headers["Content-Length"], headers["Connection"]) == (200, b"Hello Docker!!", "14", "close")
    assert ask(port, "HEAD")[:2] == (200, b"")
    assert ask(port, "POST", "/form", b"x" * 500_000)[:2] == (200, b"Hello Docker!!")
    lines = running.log.read_text().splitlines()
    assert lines == [
        "start server",
        *(f"received request: {r}" for r in ("GET /", "GET /any/path?x=1", "GET /%00*", "HEAD /", "POST /form")),
    ]


@pytest.mark.root
def test_echo_refuses_what_is_not_http(echo: tuple[Running, int]) -> None:
    _, port = echo
    assert raw(port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert raw(port, b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(port, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 201).startswith(b"HTTP/1.1 431 ")
    assert raw(port, b"GET $(reboot) HTTP/1.1\r\n`x`: '\"\r\n\r\n").startswith(b"HTTP/1.1 400 ") is False
    assert ask(port)[0] == 200


@pytest.mark.root
def test_echo_serves_many_at_once_while_others_dawdle(echo: tuple[Running, int]) -> None:
    _, port = echo
    idle = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(10)]
    try:
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda n: ask(port, path=f"/{n}")[:2], range(300)))
        assert answers == [(200, b"Hello Docker!!")] * 300
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.root
@pytest.mark.parametrize("kind", ["echo", "pause"])
def test_sigterm_ends_it_at_once(kind: str, tmp_path: Path) -> None:
    built, argv = (build_echo_image(), ["/usr/local/bin/serve", str(free_port("127.0.0.1"))])
    if kind == "pause":
        built, argv = build_bench_image(), ["/bench", "pause"]
    running = Running(unpacked(built, tmp_path / "root"), *argv)
    try:
        # wait for the trap: a signal before it would be lost on a first process
        end, trapped = time.monotonic() + 10, 0
        while not trapped & 1 << (signal.SIGTERM - 1) and time.monotonic() < end:
            try:
                found = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{running.pid}/status").read_text())
                trapped = int(found[1], 16) if found else 0
            except (IndexError, OSError):
                continue
        os.kill(running.pid, signal.SIGTERM)
        assert running.process.wait(5) == 0
    finally:
        running.close()


@pytest.mark.parametrize("name", sorted({**OWN, **STAND_INS}))
def test_the_same_files_give_the_same_digests(name: str) -> None:
    build = {**OWN, **STAND_INS}[name]
    assert build().digest == build().digest


def test_stand_ins_are_pushed_once(tmp_path: Path) -> None:
    with RegistryServer(tmp_path) as registry:
        shown = list(push_images(registry.url, OWN))
        assert shown[0] == f"example/echo:latest@{build_echo_image().digest}" and len(shown) == len(OWN)
        before = len(registry.requests())
        list(push_images(registry.url, OWN))
        again = registry.requests()[before:]
        assert not [path for method, path, _ in again if method == "POST"]
        pid = registry.pid
        assert f"127.0.0.1:{registry.port}" == registry.address
    assert not Path(f"/proc/{pid}").exists()


def test_a_tool_is_found_where_it_was_put_or_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEP_TOOLS", str(tmp_path))
    tool = tmp_path / "pkg/usr/bin/sometool"
    tool.parent.mkdir(parents=True)
    tool.write_text("")
    with pytest.raises(NotFound, match="sometool is not here: run `make setup`"):
        find_tool("sometool")
    tool.chmod(0o755)
    assert find_tool("sometool") == tool
