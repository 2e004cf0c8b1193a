"""A node without the docker command: `skep run` and its relatives on a real daemon, with and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ECHO, World

SH = ("--entrypoint", "sh", ECHO)
SKEP = [sys.executable, "-m", "skep.cli.main"]


class Skep:
    def __init__(self, world: World, home: Path) -> None:
        self.environ = {**os.environ, "SKEP_HOST": f"unix://{world.at.socket('manager')}", "HOME": str(home), "TERM": "dumb"}
        self.terminals: list[Terminal] = []

    def __call__(self, *words: str, input: bytes = b"") -> tuple[int, bytes, bytes]:
        done = subprocess.run([*SKEP, *words], input=input, capture_output=True, env=self.environ, timeout=90, check=False)
        return done.returncode, done.stdout, done.stderr

    def ok(self, *words: str, input: bytes = b"") -> str:
        code, out, err = self(*words, input=input)
        assert code == 0, err.decode()
        return out.decode()


class Terminal:
    """The command with a terminal of 30 rows and 100 columns."""

    def __init__(self, skep: Skep, *words: str) -> None:
        self.fd, inner = pty.openpty()
        self.resize(30, 100)
        self.process = subprocess.Popen(
            [*SKEP, *words], stdin=inner, stdout=inner, stderr=inner, env=skep.environ, start_new_session=True, preexec_fn=_controlling
        )
        skep.terminals.append(self)
        os.close(inner)
        self.seen = b""
        self.told = 0

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def until(self, text: bytes) -> None:
        """What has been seen once is not seen again."""
        end = time.monotonic() + 30
        while (at := self.seen.find(text, self.told)) < 0:
            assert time.monotonic() < end, f"never saw {text!r}: {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 1 << 16)
        self.told = at + len(text)

    def end(self) -> int:
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                break
            if not data:
                break
            self.seen += data
        os.close(self.fd)
        return self.process.wait(30)


def _controlling() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def skep(world: World, tmp_path: Path) -> Iterator[Skep]:
    skep = Skep(world, tmp_path)
    skep.ok("pull", "-q", ECHO)
    try:
        yield skep
    finally:
        for terminal in skep.terminals:
            if terminal.process.poll() is None:
                terminal.process.kill()
                terminal.end()
        left = skep.ok("ps", "-aq", "--filter", "label=of=test").split()
        if left:
            skep.ok("rm", "-fv", *left)


OURS = ("-l", "of=test")


def test_output_and_code(skep: Skep) -> None:
    assert skep("run", "--rm", *SH, "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert skep("run", "--rm", "--entrypoint", "nosuch", ECHO)[0] == 127
    assert skep("run", "--rm", "--entrypoint", "/etc", ECHO)[0] == 126
    assert skep("run", "--rm", "--pull", "never", "nosuch:1")[0] == 125
    assert skep.ok("ps", "-aq", "--filter", "label=of=test") == ""


def test_much_input_and_output_at_the_same_time(skep: Skep) -> None:
    data = os.urandom(1 << 20) * 24
    code, out, err = skep("run", "--rm", "-i", "--entrypoint", "cat", ECHO, input=data)
    assert (code, err, out == data) == (0, b"", True)


def test_signals_reach_the_container(skep: Skep) -> None:
    script = 'trap "echo one" USR1; trap "echo end; exit 9" TERM; echo ready; while :; do sleep 0.05; done'
    process = subprocess.Popen([*SKEP, "run", "--rm", *OURS, *SH, "-c", script], stdout=subprocess.PIPE, env=skep.environ)
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert lines.readline() == b"one\n"
        process.send_signal(signal.SIGTERM)
        assert lines.readline() == b"end\n"
    assert process.wait(30) == 9


def test_a_terminal(skep: Skep) -> None:
    shell = Terminal(skep, "run", "-it", "--rm", *OURS, *SH)
    shell.until(b"# ")
    shell.type(b"echo size $(stty size)\n")
    shell.until(b"size 30 100")
    shell.resize(41, 121)
    shell.type(b"while ! stty size | grep -x '41 121'; do sleep 0.05; done; echo seen\n")
    shell.until(b"\nseen")
    shell.type(b"exit 3\n")
    assert shell.end() == 3


def test_detaching_and_coming_back(skep: Skep) -> None:
    shell = Terminal(skep, "run", "-it", "--name", "back", *OURS, *SH)
    shell.until(b"# ")
    shell.type(b"X=kept; echo do''ne\n")
    shell.until(b"done")
    shell.type(b"\x10\x11")
    assert shell.end() == 0
    again = Terminal(skep, "attach", "--detach-keys", "ctrl-a,d", "back")
    again.type(b"\necho $X.\n")
    again.until(b"kept.")
    again.type(b"\x01d")
    assert again.end() == 1 and again.seen.endswith(b"read escape sequence\r\n")
    inside = Terminal(skep, "exec", "-it", "back", "sh", "-c", "tty; exit 4")
    inside.until(b"/dev/pts/")
    assert inside.end() == 4
    last = Terminal(skep, "attach", "back")
    last.type(b"\nexit 6\n")
    assert last.end() == 6


def test_an_interrupt_ends_the_container(skep: Skep) -> None:
    shell = Terminal(skep, "run", "--rm", *OURS, *SH, "-c", 'trap "echo int; exit 5" INT; echo go; while :; do sleep 0.05; done')
    shell.until(b"go")
    shell.type(b"\x03")
    assert shell.end() == 5


def test_files_there_and_back(skep: Skep, tmp_path: Path) -> None:
    source = tmp_path / "from"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("content")
    (source / "link").symlink_to("sub/file")
    skep.ok("run", "-d", "--name", "files", *OURS, "--entrypoint", "sleep", ECHO, "300")
    skep.ok("cp", str(source), "files:/tmp/new")
    assert skep.ok("exec", "files", "cat", "/tmp/new/link") == "content"
    skep.ok("cp", "files:/tmp/new/.", str(tmp_path / "to"))
    assert (tmp_path / "to" / "link").read_text() == "content"
    archive = skep("cp", "files:/tmp/new", "-")[1]
    skep.ok("exec", "files", "mkdir", "/tmp/again")
    skep.ok("cp", "-", "files:/tmp/again", input=archive)
    assert skep.ok("exec", "files", "cat", "/tmp/again/new/sub/file") == "content"
    assert "A /tmp/new/sub/file" in skep.ok("diff", "files").splitlines()


def test_the_life_of_a_container(skep: Skep, world: World) -> None:
    id = skep.ok("create", "--name", "life", *OURS, "--entrypoint", "sleep", ECHO, "300").strip()
    skep.ok("start", "life")
    assert skep.ok("ps", "-q", "--no-trunc", "--filter", "name=^life$").strip() == id
    skep.ok("pause", "life")
    assert "(Paused)" in skep.ok("ps", "--filter", "name=^life$")
    skep.ok("unpause", "life")
    skep.ok("update", "-m", "64m", "life")
    skep.ok("rename", "life", "other")
    assert skep.ok("inspect", "-f", "{{.HostConfig.Memory}} {{.Name}}", id) == f"{64 << 20} /other\n"
    assert skep.ok("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "other") == "other 1\n"
    world.until(lambda: "sleep 300" in skep.ok("top", "other"), "the runtime has become the program")
    skep.ok("stop", "-t", "0", "other")
    assert skep.ok("wait", "other") == "137\n"
    assert skep("rm", "other")[:2] == (0, b"other\n")


def test_images_volumes_and_what_they_take(skep: Skep, tmp_path: Path) -> None:
    skep.ok("pull", ECHO)
    skep.ok("tag", ECHO, "registry:5000/mine/echo:2")
    assert "digest: sha256:" in skep.ok("push", "registry:5000/mine/echo:2")
    skep.ok("save", "-o", str(tmp_path / "i.tar"), "registry:5000/mine/echo:2")
    skep.ok("rmi", "registry:5000/mine/echo:2")
    assert skep.ok("load", "-i", str(tmp_path / "i.tar")) == "Loaded image: registry:5000/mine/echo:2\n"
    assert skep.ok("images", "-q", "registry:5000/mine/echo:2") == skep.ok("images", "-q", ECHO)
    skep.ok("rmi", "registry:5000/mine/echo:2")
    skep.ok("volume", "create", "mine")
    skep.ok("run", "--rm", "-v", "mine:/v", *SH, "-c", "echo x > /v/y")
    assert skep.ok("run", "--rm", "-v", "mine:/v", *SH, "-c", "cat /v/y") == "x\n"
    assert "mine" in skep.ok("system", "df", "-v")
    assert skep.ok("volume", "rm", "mine") == "mine\n"
