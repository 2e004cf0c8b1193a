"""A small HTTP/1.1 client on blocking sockets, for the CLI: one connection, kept alive between calls, streams, hijacking.

It exists because http.client costs 20 ms to import, a third of what `skep service ls` may cost in all. It speaks what the Engine API needs
and no more: bodies with a length or chunked, JSON in and out, a connection taken over (`hijack`).
"""

from __future__ import annotations

import json
import socket

from skep.client.address import Address
from skep.errors import SkepError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from skep.client.calls import Call

MAX_HEAD = 1 << 16
BLOCK = 1 << 16


class ApiError(SkepError):
    """The daemon's answer to what it would not do. `status` is its HTTP status, the text its message."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """A socket and what was read from it too early."""

    __slots__ = ("rest", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""

    def some(self) -> bytes:
        """Some bytes; b"" at the end."""
        if self.rest:
            data, self.rest = self.rest, b""
            return data
        return self.sock.recv(BLOCK)

    def line(self) -> bytes:
        """Up to a line's end, without it. Raises Unavailable when there is none."""
        while (end := self.rest.find(b"\n")) < 0:
            data = self.sock.recv(BLOCK)
            if not data or len(self.rest) > MAX_HEAD:
                raise Unavailable("the daemon closed the connection" if not data else "the daemon's answer is no HTTP")
            self.rest += data
        line, self.rest = self.rest[:end], self.rest[end + 1 :]
        return line.rstrip(b"\r")

    def exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.some()
            if not data:
                raise Unavailable("the daemon closed the connection")
            if len(data) > size:
                data, self.rest = data[:size], data[size:]
            size -= len(data)
            yield data


def _send_parts(sock: socket.socket, parts: Iterator[bytes]) -> None:
    """A body whose length nobody knows. Who listens no longer has said why: that is read next."""
    try:
        for part in parts:
            if part:
                sock.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        sock.sendall(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass


class Answer:
    """Headers are in lower case. The body is read once, by `read`, `blocks` or `lines`."""

    def __init__(self, engine: Engine, connection: Connection, status: int, headers: dict[str, str], method: str) -> None:
        self.status = status
        self.headers = headers
        self.connection = connection
        self._engine = engine
        self._empty = method == "HEAD" or status in (204, 304) or 100 <= status < 200

    def blocks(self) -> Iterator[bytes]:
        """The body as it comes. At its end the connection goes back to the engine."""
        length = self.headers.get("content-length")
        if self._empty:
            pass
        elif self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.connection.line().partition(b";")[0], 16):
                yield from self.connection.exactly(size)
                self.connection.line()
            while self.connection.line():
                pass
        elif length is not None:
            yield from self.connection.exactly(int(length))
        else:
            while data := self.connection.some():
                yield data
            self.close()
            return
        if self.headers.get("connection", "").lower() == "close":
            self.close()
        else:
            self._engine.keep(self.connection)

    def read(self) -> bytes:
        return b"".join(self.blocks())

    def lines(self) -> Iterator[bytes]:
        """Lines of a stream, each as soon as it is whole."""
        rest = b""
        for block in self.blocks():
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def close(self) -> None:
        self.connection.sock.close()


class Engine:
    """The daemon at an address. Not for several threads."""

    def __init__(self, address: Address, timeout: float | None = None) -> None:
        self.address = address
        self._timeout = timeout
        self._idle: Connection | None = None
        self._sockets: list[socket.socket] = []

    def keep(self, connection: Connection) -> None:
        """For the next call; one is enough."""
        if self._idle is not None:
            self._idle.sock.close()
        self._idle = connection

    def close(self) -> None:
        """All connections, those of unread answers too."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._idle = None

    def call(self, call: Call) -> Any:
        """The answer's JSON; None for an empty one. Raises ApiError, Unavailable."""
        body = self.open(call).read()
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except ValueError:
            return body.decode(errors="replace")

    def open(self, call: Call) -> Answer:
        """The answer with its body still to be read. Raises ApiError for 400 and above."""
        return self._checked(self._send(call, {}))

    def hijack(self, call: Call) -> Answer:
        """As `open`, and the connection is the caller's from then on (`answer.connection`)."""
        return self._checked(self._send(call, {"Connection": "Upgrade", "Upgrade": "tcp"}))

    def _checked(self, answer: Answer) -> Answer:
        if answer.status < 400:
            return answer
        body = answer.read().decode(errors="replace")
        try:
            message = json.loads(body)["message"]
        except (ValueError, KeyError, TypeError):
            message = body.strip() or f"request returned {answer.status} for API route"
        raise ApiError(message, answer.status)

    def _send(self, call: Call, extra: dict[str, str]) -> Answer:
        data = b""
        headers = {"Host": "api.moby.localhost", "User-Agent": "skep", **call.headers, **extra}
        if call.body is not None:
            if hasattr(call.body, "__next__"):
                headers["Transfer-Encoding"] = "chunked"
                headers.setdefault("Content-Type", "application/x-tar")
            else:
                data = call.body if isinstance(call.body, bytes) else json.dumps(call.body, separators=(",", ":")).encode() + b"\n"
                headers.setdefault("Content-Type", "application/json")
        if "Transfer-Encoding" not in headers and (data or call.method in ("POST", "PUT")):
            headers["Content-Length"] = str(len(data))
        head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        request = f"{call.method} {call.target} HTTP/1.1\r\n{head}\r\n".encode() + data
        if self._idle is not None and call.method in ("GET", "HEAD"):
            idle, self._idle = self._idle, None
            try:
                idle.sock.sendall(request)
                return self._receive(idle, call.method)
            except (OSError, Unavailable):
                idle.sock.close()
        connection = Connection(self._connect())
        connection.sock.sendall(request)
        if "Transfer-Encoding" in headers:
            _send_parts(connection.sock, call.body)
        return self._receive(connection, call.method)

    def _receive(self, connection: Connection, method: str) -> Answer:
        status = 100
        while status == 100:
            words = connection.line().split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
                raise Unavailable("the daemon's answer is no HTTP")
            status = int(words[1])
            headers: dict[str, str] = {}
            while line := connection.line():
                key, _, value = line.decode("latin-1").partition(":")
                headers[key.strip().lower()] = value.strip()
        return Answer(self, connection, status, headers, method)

    def _connect(self) -> socket.socket:
        address = self.address
        try:
            if address.path:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._sockets.append(sock)
                sock.settimeout(self._timeout)
                sock.connect(address.path)
                return sock
            sock = socket.create_connection((address.host, address.port), self._timeout)
            self._sockets.append(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls is None:
                return sock
            from skep.client.secure import secured

            secure: Any = secured(sock, address.host, *address.tls)
            return secure  # type: ignore[no-any-return]
        except PermissionError:
            raise Unavailable(
                f"permission denied on the daemon socket at {address.text}: run as root or as a member of its group"
            ) from None
        except OSError as error:
            reason = "" if isinstance(error, ConnectionRefusedError | FileNotFoundError) else f" ({error.strerror or error})"
            raise Unavailable(f"Cannot connect to the skep daemon at {address.text}. Is skepd running?{reason}") from None
