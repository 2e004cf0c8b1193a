"""How skep's command line finds the daemon, and what it makes of its answers on the wire."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from skep import config
from skep.cli.main import main
from skep.cli.shell import Shell
from skep.client import address
from skep.errors import ConfigError


def test_the_default_is_skepds_own_socket() -> None:
    assert f"unix://{config.DEFAULT_SOCKET}" == address.DEFAULT_HOST


@pytest.mark.parametrize(
    ("given", "environ", "found"),
    [
        ("", {}, address.DEFAULT_HOST),
        ("", {"DOCKER_HOST": "unix:///d"}, "unix:///d"),
        ("", {"DOCKER_HOST": "unix:///d", "SKEP_HOST": "unix:///s"}, "unix:///s"),
        ("unix:///h", {"DOCKER_HOST": "unix:///d", "SKEP_HOST": "unix:///s"}, "unix:///h"),
    ],
)
def test_a_flag_wins_over_the_environment(given: str, environ: dict[str, str], found: str) -> None:
    assert address.find_address(given, environ).text == found


def test_addresses() -> None:
    tcp = address.parse_address("tcp://[::1]:2375")
    assert (tcp.host, tcp.port, tcp.tls) == ("::1", 2375, None)
    assert address.parse_address("tcp://h").port == 2375
    secure = address.find_address("tcp://h", {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/c"})
    assert (secure.port, secure.tls) == (2376, ("/c", True))
    for bad in ("foo", "ssh://h", "unix://", "tcp://h:x", "tcp://h:99999"):
        with pytest.raises(ConfigError):
            address.parse_address(bad)


def test_no_daemon_is_one_line(tmp_path: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    shell = Shell(out, err, {"SKEP_HOST": f"unix://{tmp_path}/none.sock"}, lambda: 0, lambda _: None)
    assert main(["service", "ls"], shell) == 1
    assert err.getvalue() == f"Cannot connect to the skep daemon at unix://{tmp_path}/none.sock. Is skepd running?\n"
    shell = Shell(out, io.StringIO(), {"DOCKER_HOST": "bogus"}, lambda: 0, lambda _: None)
    assert main(["service", "ls"], shell) == 1


def answering(tmp_path: Path, *answers: bytes) -> tuple[Path, list[bytes], Callable[[], None]]:
    """A daemon that says what it was told, one answer per connection, and keeps what it was sent."""
    path = tmp_path / "raw.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    sent: list[bytes] = []

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                sent.append(connection.recv(1 << 16))
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()

    def done() -> None:
        thread.join()
        listener.close()

    return path, sent, done


@pytest.mark.parametrize(
    ("answer", "code", "out", "err"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n3;x=y\r\n \n]\r\n0\r\nT: x\r\n\r\n", 0, "", ""),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[]", 0, "", ""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", 0, "", ""),
        (b'HTTP/1.1 503 X\r\nContent-Length: 17\r\n\r\n{"message":"not"}', 1, "", "Error response from daemon: not\n"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 5\r\n\r\nplain", 1, "", "Error response from daemon: plain\n"),
        (b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", 1, "", "Error response from daemon: request returned 404 for API route\n"),
        (b"", 1, "", "the daemon closed the connection\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]", 1, "", "the daemon closed the connection\n"),
        (b"SSH-2.0\r\n\r\n", 1, "", "the daemon's answer is no HTTP\n"),
    ],
)
def test_answers_of_all_kinds(tmp_path: Path, answer: bytes, code: int, out: str, err: str) -> None:
    path, sent, done = answering(tmp_path, answer)
    stdout, stderr = io.StringIO(), io.StringIO()
    shell = Shell(stdout, stderr, {"SKEP_HOST": f"unix://{path}"}, lambda: 0, lambda _: None)
    assert main(["service", "ls", "-q"], shell) == code
    done()
    assert (stdout.getvalue(), stderr.getvalue()) == (out, err)
    assert sent[0].startswith(b"GET /services HTTP/1.1\r\nHost: ")


def test_a_kept_connection_that_died_is_made_anew(tmp_path: Path) -> None:
    nodes = b'[{"ID":"n","Spec":{"Availability":"active"},"Status":{"State":"ready"},"Description":{"Hostname":"h","Engine":{}}}]'
    path, sent, done = answering(
        tmp_path,
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(nodes), nodes),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    )
    out = io.StringIO()
    shell = Shell(out, io.StringIO(), {"SKEP_HOST": f"unix://{path}"}, lambda: 0, lambda _: None)
    assert main(["node", "ls", "--format", "{{.Hostname}}"], shell) == 0
    done()
    assert out.getvalue() == "h\n"
    assert len(sent) == 2
