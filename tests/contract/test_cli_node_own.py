"""`skep run` and its relatives where Docker's command line does otherwise, and what no recording shows: terminals, archives, much input."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import stat
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from cli_engine import FakeEngine
from cli_node import CREATED

from skep.cli import archive, hijack, image_progress
from skep.cli.image_names import named
from skep.cli.main import main
from skep.cli.shell import Failed, Shell
from skep.client.unix import Connection


def run(engine: FakeEngine, *words: str, home: Path, input: str = "") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    environ = {"SKEP_HOST": f"unix://{engine.path}", "HOME": str(home)}
    shell = Shell(out, err, environ, lambda: 0, lambda _: None, io.StringIO(input))
    return main(words, shell), out.getvalue(), err.getvalue()


def created(engine: FakeEngine) -> dict[str, Any]:
    found: list[dict[str, Any]] = [r["body"] for r in engine.requests if r["path"] == "/containers/create"]
    return found[0]


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    with FakeEngine(tmp_path / "e.sock") as running:
        yield running


# run


def test_one_stream_only(engine: FakeEngine, tmp_path: Path) -> None:
    """The docker CLI 28.2 falls over a nil pointer here."""
    assert run(engine, "run", "-a", "stdout", "alpine", home=tmp_path) == (0, "out\n", "")
    assert run(engine, "run", "-a", "stderr", "alpine", home=tmp_path) == (0, "", "err\n")


def test_only_the_input_tells_the_id(engine: FakeEngine, tmp_path: Path) -> None:
    assert run(engine, "run", "-i", "-a", "stdin", "alpine", home=tmp_path, input="hello") == (0, CREATED + "\n", "")


def test_a_limit_of_kernel_memory_is_not_dropped(engine: FakeEngine, tmp_path: Path) -> None:
    run(engine, "run", "-d", "--kernel-memory", "10m", "alpine", home=tmp_path)
    assert created(engine)["HostConfig"]["KernelMemory"] == 10 << 20


@pytest.mark.parametrize("words", [("run",), ("create",), ("pull",), ("push",)])
def test_signatures_are_not_pretended(engine: FakeEngine, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, _, err = run(engine, *words, "--disable-content-trust=false", "alpine", home=tmp_path)
    assert (code, "verifies no signatures" in err, engine.requests) == (1, True, [])


def test_the_id_file_is_there_when_the_container_is(engine: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "cid"
    assert run(engine, "run", "-d", "--cidfile", str(file), "alpine", home=tmp_path)[0] == 0
    assert file.read_text() == CREATED
    file.unlink()
    assert run(engine, "run", "-d", "--cidfile", str(file), "conflict", home=tmp_path)[0] == 125
    assert not file.exists()


def test_the_api_socket_is_mounted_but_no_logins(engine: FakeEngine, tmp_path: Path) -> None:
    run(engine, "run", "-d", "--use-api-socket", "alpine", home=tmp_path)
    mount = {"Type": "bind", "Source": str(engine.path), "Target": "/var/run/docker.sock", "BindOptions": {}}
    assert created(engine)["HostConfig"]["Mounts"] == [mount]
    keep(tmp_path, {"auths": {"registry:5000": {"auth": "YTpi"}}})
    code, _, err = run(engine, "run", "-d", "--use-api-socket", "alpine", home=tmp_path)
    assert (code, "kept logins" in err) == (125, True)


def test_proxies_of_the_config_file(engine: FakeEngine, tmp_path: Path) -> None:
    keep(tmp_path, {"proxies": {"default": {"httpProxy": "http://p:1", "noProxy": "x"}}})
    run(engine, "run", "-d", "-e", "NO_PROXY=mine", "-e", "A=1", "alpine", home=tmp_path)
    assert created(engine)["Env"] == ["NO_PROXY=mine", "A=1", "HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "no_proxy=x"]


def test_a_daemon_that_is_not_there_is_125(tmp_path: Path) -> None:
    code, _, err = run(FakeEngine(tmp_path / "none.sock"), "run", "alpine", home=tmp_path)
    assert (code, err.startswith("skep: Cannot connect")) == (125, True)


def test_detached_from_a_container_by_the_config_files_keys(engine: FakeEngine, tmp_path: Path) -> None:
    keep(tmp_path, {"detachKeys": "ctrl-x,q"})
    run(engine, "run", "alpine", home=tmp_path)
    assert next(r for r in engine.requests if r["path"].endswith("/attach"))["query"]["detachKeys"] == "ctrl-x,q"
    assert run(engine, "run", "--detach-keys", "ctrl-", "alpine", home=tmp_path)[::2] == (1, "Unknown character: 'ctrl-'\n")


@pytest.mark.parametrize(
    "words", [("build", "."), ("image", "build"), ("commit", "c1"), ("search", "x"), ("plugin", "ls"), ("volume", "update")]
)
def test_what_is_not_there_says_so(engine: FakeEngine, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = run(engine, *words, home=tmp_path)
    assert (code, out, err.startswith("skep ") and err.count("\n") == 1) == (1, "", True)
    assert not engine.requests


# logins


def keep(home: Path, config: dict[str, Any]) -> Path:
    (home / ".docker").mkdir(exist_ok=True)
    file = home / ".docker" / "config.json"
    file.write_text(json.dumps(config))
    return file


def test_a_login_is_kept_for_its_owner_and_used(engine: FakeEngine, tmp_path: Path) -> None:
    file = keep(tmp_path, {"detachKeys": "ctrl-x"})
    code, out, _ = run(engine, "login", "-u", "me", "--password-stdin", "registry:5000", home=tmp_path, input="secret\n")
    assert (code, out) == (0, "Login Succeeded\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    entry = {"auth": base64.b64encode(b"me:secret").decode()}
    assert json.loads(file.read_text()) == {"detachKeys": "ctrl-x", "auths": {"registry:5000": entry}}
    run(engine, "pull", "registry:5000/a/b", home=tmp_path)
    sent = json.loads(base64.urlsafe_b64decode(engine.requests[-1]["auth"]))
    assert sent == {"username": "me", "password": "secret", "serveraddress": "registry:5000"}
    assert run(engine, "logout", "registry:5000", home=tmp_path)[0] == 0
    assert json.loads(file.read_text()) == {"detachKeys": "ctrl-x", "auths": {}}


def test_a_login_that_is_refused_is_not_kept(engine: FakeEngine, tmp_path: Path) -> None:
    code, _, err = run(engine, "login", "-u", "me", "-p", "wrong", "registry:5000", home=tmp_path)
    assert code == 1 and err.endswith('Error response from daemon: Get "https://registry.example/v2/": unauthorized\n')
    assert not (tmp_path / ".docker").exists()


def test_a_login_nobody_can_check_is_kept_with_a_warning(engine: FakeEngine, tmp_path: Path) -> None:
    engine.refuse["POST /auth"] = (501, "not checked here")
    code, out, err = run(engine, "login", "-u", "me", "-p", "x", "registry:5000", home=tmp_path)
    assert (code, out, "not checked here" in err) == (0, "Login kept\n", True)


def test_what_a_helper_keeps_is_left_to_it(engine: FakeEngine, tmp_path: Path) -> None:
    keep(tmp_path, {"credsStore": "pass"})
    for words in (("login", "-u", "a", "-p", "b", "r:1"), ("logout", "r:1")):
        code, _, err = run(engine, *words, home=tmp_path)
        assert (code, "docker-credential-pass" in err) == (1, True)


# a terminal


def test_keys_that_detach() -> None:
    keyboard = hijack.Keyboard(hijack.detach_keys("ctrl-p,ctrl-q"))
    assert keyboard.feed(b"ab\x10") == (b"ab", False)
    assert keyboard.feed(b"c\x10\x10") == (b"\x10c\x10", False)
    assert keyboard.feed(b"\x11d") == (b"", True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Lines:
    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = messages

    def lines(self) -> Any:
        return (json.dumps(message).encode() for message in self.messages)


def test_layers_have_a_line_each() -> None:
    out = Terminal()
    half = {"id": "b", "status": "Downloading", "progressDetail": {"current": 500, "total": 1000}}
    image_progress.show(
        Lines(
            {"status": "Pulling"},
            {"id": "a", "status": "Waiting", "progressDetail": {}},
            half,
            {"id": "a", "status": "Done", "progressDetail": {}},
        ),  # type: ignore[arg-type]
        out,
    )
    assert out.getvalue().split("\n") == [
        "Pulling",
        "",
        "\x1b[1A\x1b[2K\ra: Waiting \r\x1b[1B",
        "\x1b[1A\x1b[2K\rb: Downloading     500B/1kB\r\x1b[1B\x1b[2A\x1b[2K\ra: Done \r\x1b[2B",
    ]


def test_a_bar_where_there_is_room() -> None:
    assert image_progress.progress_bar({"current": 1, "total": 4}, 200) == "[" + "=" * 12 + ">" + " " * 38 + "]       1B/4B"
    assert image_progress.progress_bar({"current": 2048}, 200) == " 2.048kB"


def test_who_sends_much_goes_on_reading(tmp_path: Path) -> None:
    """A container that answers each byte (`cat`) stops reading when nobody reads what it writes."""
    here, there = socket.socketpair()
    data = os.urandom(4 << 20)
    (tmp_path / "in").write_bytes(data)

    def echo() -> None:
        while block := there.recv(1 << 16):
            there.sendall(block)
        there.close()

    class Taken:
        connection = Connection(here)

    thread = threading.Thread(target=echo)
    thread.start()
    with open(tmp_path / "in") as file:
        shell = Shell(io.StringIO(), io.StringIO(), {}, lambda: 0, lambda _: None, file)
        got = b"".join(hijack._blocks(shell, Taken(), True))  # type: ignore[arg-type]
    thread.join()
    here.close()
    assert got == data


# names


@pytest.mark.parametrize(
    ("text", "name", "wanted", "shown"),
    [
        ("alpine", "docker.io/library/alpine", "latest", "alpine:latest"),
        ("a/b:1", "docker.io/a/b", "1", "a/b:1"),
        ("localhost/a", "localhost/a", "latest", "localhost/a:latest"),
        ("Host/a:1", "Host/a", "1", "Host/a:1"),
        ("r.x:5000/a/b", "r.x:5000/a/b", "latest", "r.x:5000/a/b:latest"),
        ("a@sha256:" + "1" * 64, "docker.io/library/a", "sha256:" + "1" * 64, "a@sha256:" + "1" * 64),
        ("index.docker.io/a", "docker.io/library/a", "latest", "a:latest"),
    ],
)
def test_names_of_images(text: str, name: str, wanted: str, shown: str) -> None:
    image = named(text)
    assert (image.name, image.wanted, image.shown) == (name, wanted, shown)


@pytest.mark.parametrize("text", ["", "a:", "a b", "-a", "a//b", "a:t:u", "1" * 64, "a@sha256:12"])
def test_what_names_no_image(text: str) -> None:
    with pytest.raises(Failed):
        named(text)


# archives


def folder(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "a").write_text("a")
    (path / "sub" / "b").write_bytes(b"b" * 1000)
    (path / "link").symlink_to("/etc/passwd")
    (path / "a").chmod(0o741)
    os.utime(path / "a", (1_000_000_000, 1_000_000_000))
    return path


def unpack(target: Path, old: str, new: str, *members: tuple[tarfile.TarInfo, bytes]) -> int:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.Unpacked(str(target.resolve()), old, new).run(iter([out.getvalue()[:700], out.getvalue()[700:]]))


def test_there_and_back(tmp_path: Path) -> None:
    source, target = folder(tmp_path / "from"), tmp_path / "to"
    target.mkdir()
    archive.Unpacked(str(target), "new", "other").run(archive.packed(str(source), "new"))
    found = target / "other"
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*")) == ["a", "link", "sub", "sub/b"]
    assert (found / "sub" / "b").read_bytes() == b"b" * 1000
    assert os.readlink(found / "link") == "/etc/passwd"
    assert (stat.S_IMODE((found / "a").stat().st_mode), int((found / "a").stat().st_mtime)) == (0o741, 1_000_000_000)


def test_contents_of_a_folder(tmp_path: Path) -> None:
    source, target = folder(tmp_path / "from"), tmp_path / "to"
    target.mkdir()
    archive.Unpacked(str(target), ".", ".").run(archive.packed(f"{source}/.", "."))
    assert sorted(path.name for path in target.iterdir()) == ["a", "link", "sub"]


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


@pytest.mark.parametrize(
    "members",
    [
        [(tarfile.TarInfo("../out"), b"x")],
        [(tarfile.TarInfo("x/../../out"), b"x")],
        [(link("x/d", ".."), b""), (tarfile.TarInfo("x/d/out"), b"x")],
        [(link("x/d", "/etc"), b""), (tarfile.TarInfo("x/d/out"), b"x")],
        [(link("x/h", "../out", tarfile.LNKTYPE), b"")],
    ],
)
def test_nothing_leads_outside(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    target = tmp_path / "deep" / "to"
    (target / "x").mkdir(parents=True)
    with pytest.raises(Failed, match=r"leads outside|no such file"):
        unpack(target, "x", "x", *members)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["to"]
    assert not Path("/etc/out").exists()


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "to" / "x").symlink_to(tmp_path / "precious")
    unpack(tmp_path / "to", "x", "x", (tarfile.TarInfo("x"), b"new"))
    assert ((tmp_path / "precious").read_text(), (tmp_path / "to" / "x").read_text()) == ("keep", "new")


def test_kinds_are_not_exchanged(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(Failed, match="cannot overwrite directory"):
        unpack(tmp_path, "x", "x", (tarfile.TarInfo("x"), b"new"))


def test_an_archive_cut_short_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failed):
        archive.Unpacked(str(tmp_path), "a", "a").run(iter([b"garbage" * 200]))


def test_cp_puts_files_where_docker_does(engine: FakeEngine, tmp_path: Path) -> None:
    assert run(engine, "cp", "c2:/etc/hosts", str(tmp_path / "new"), home=tmp_path)[0] == 0
    assert (tmp_path / "new").read_text() == "hello"
    assert run(engine, "cp", "c2:/etc/hosts", str(tmp_path), home=tmp_path)[0] == 0
    assert (tmp_path / "hosts").read_text() == "hello"
    code, _, err = run(engine, "cp", str(folder(tmp_path / "d")), "c2:/file", home=tmp_path)
    assert (code, err) == (1, "cannot copy directory\n")


def test_a_saved_image_is_whole_or_not_there(engine: FakeEngine, tmp_path: Path) -> None:
    assert run(engine, "save", "-o", str(tmp_path / "i.tar"), "alpine", home=tmp_path)[0] == 0
    assert (tmp_path / "i.tar").read_bytes() == b"a tar, say\n"
    engine.refuse["GET /images/get"] = (500, "boom")
    assert run(engine, "save", "-o", str(tmp_path / "j.tar"), "alpine", home=tmp_path)[0] == 1
    assert not list(tmp_path.glob("j.tar*"))
