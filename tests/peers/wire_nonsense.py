"""What is no proper HTTP, or none that ends: sent to a server, which says so, or hangs up, and goes on with the others meanwhile."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass

JSON = "Content-Type: application/json\r\n"
ANSWERED_WITHIN = 20.0
"""Seconds."""
IDLE = 100
"""Connections that say nothing, or not enough, while others are served."""


@dataclass(frozen=True)
class Nonsense:
    """`statuses`: what may be the answer; 0: none, the connection is closed. `ends`: the client hangs up when all is sent, unread."""

    name: str
    sent: bytes
    statuses: tuple[int, ...] = (400,)
    ends: bool = False


def post(path: str, headers: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: docker\r\n{headers}\r\n".encode("latin-1") + body


def gz(value: bytes) -> str:
    return f"Content-Encoding: gzip\r\nContent-Length: {len(value)}\r\n"


BOMB = gzip.compress(b" " * (64 << 20))
CHUNKED = JSON + "Transfer-Encoding: chunked\r\n"
GET = b"GET /version HTTP/1.1\r\nHost: docker\r\n"

NONSENSE = (
    Nonsense("no HTTP", b"hello\r\n\r\n", (400, 0)),
    Nonsense("zeros", b"\0" * 5000 + b"\r\n\r\n", (400, 0)),
    Nonsense("TLS's greeting", bytes.fromhex("16030100a5010000a10303") + b"\x01" * 200 + b"\r\n\r\n", (400, 0)),
    Nonsense("HTTP/2's greeting", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 0)),
    Nonsense("HTTP/9", b"GET /version HTTP/9.9\r\nHost: docker\r\n\r\n", (400, 200, 0)),
    Nonsense("a header without a colon", GET + b"nothing\r\n\r\n"),
    Nonsense("a header with a null byte", GET + b"X-A: a\0b\r\n\r\n"),
    Nonsense("a header without a name", GET + b": x\r\n\r\n"),
    Nonsense("a request line of 2 MB", b"GET /" + b"a" * (2 << 20) + b" HTTP/1.1\r\nHost: docker\r\n\r\n", (400, 0)),
    Nonsense("a header of 2 MB", GET + b"X-A: " + b"a" * (2 << 20) + b"\r\n\r\n", (400, 0)),
    Nonsense("100,000 headers", GET + b"X-A: a\r\n" * 100_000 + b"\r\n", (400, 0, 200)),
    Nonsense("a length that is no number", post("/volumes/create", JSON + "Content-Length: x\r\n", b"")),
    Nonsense("a length below zero", post("/volumes/create", JSON + "Content-Length: -5\r\n", b"")),
    Nonsense("a length of 30 digits", post("/volumes/create", JSON + "Content-Length: " + "9" * 30 + "\r\n", b"{}")),
    Nonsense("two lengths", post("/volumes/create", JSON + "Content-Length: 2\r\nContent-Length: 3\r\n", b"{}x")),
    Nonsense("a length and chunks", post("/volumes/create", CHUNKED + "Content-Length: 2\r\n", b"0\r\n\r\n")),
    Nonsense("chunks of no number", post("/volumes/create", CHUNKED, b"zz\r\n{}\r\n0\r\n\r\n"), (400, 0)),
    Nonsense("a chunk longer than it says", post("/volumes/create", CHUNKED, b"2\r\n{}xxxx\r\n0\r\n\r\n"), (400, 0)),
    Nonsense("chunks of no number, an archive", post("/images/load", "Transfer-Encoding: chunked\r\n", b"zz\r\n"), (400, 0)),
    Nonsense("a chunk of 2^70 bytes", post("/volumes/create", CHUNKED, b"400000000000000000\r\n{}"), (400, 0)),
    Nonsense("gzip that is none", post("/volumes/create", JSON + gz(b"xxxx"), b"xxxx")),
    Nonsense("gzip cut short", post("/volumes/create", JSON + gz(BOMB[:100]), BOMB[:100])),
    Nonsense("gzip of 64 MB", post("/volumes/create", JSON + gz(BOMB), BOMB)),
    Nonsense(
        "an unknown encoding", post("/volumes/create", JSON + "Content-Encoding: zz\r\nContent-Length: 2\r\n", b"{}"), (201, 400, 415)
    ),
    Nonsense("an unknown transfer", post("/volumes/create", JSON + "Transfer-Encoding: zz\r\n", b"{}"), (400, 501, 0)),
    Nonsense("a body of 20 MB", post("/volumes/create", JSON + f"Content-Length: {20 << 20}\r\n", b" " * (20 << 20)), (413,)),
    Nonsense("an expectation nobody knows", post("/volumes/create", JSON + "Expect: x\r\nContent-Length: 2\r\n", b"{}"), (417, 201)),
    Nonsense("an upgrade to nothing", GET + b"Connection: Upgrade\r\nUpgrade: zz\r\n\r\n", (200,)),
    Nonsense(
        "an upgrade without a key",
        b"GET /containers/x/attach/ws HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        (404, 501),
    ),
    Nonsense("a target that is no path", b"GET http://[::1 HTTP/1.1\r\nHost: docker\r\n\r\n", (400, 404, 0)),
    Nonsense("a star", b"OPTIONS * HTTP/1.1\r\nHost: docker\r\n\r\n", (400, 404)),
    Nonsense("bad percents", b"GET /containers/%zz%/json?filters=%zz&%=% HTTP/1.1\r\nHost: docker\r\n\r\n", (400, 404)),
    Nonsense("a method nobody knows", b"BREW /containers/json HTTP/1.1\r\nHost: docker\r\n\r\n", (400, 404, 405)),
    Nonsense("no host", b"GET /version HTTP/1.1\r\n\r\n", (200, 400)),
    Nonsense("HTTP/1.0", b"GET /version HTTP/1.0\r\n\r\n", (200,)),
    Nonsense("half a request line", b"GET /ver", ends=True),
    Nonsense("half a head", GET, ends=True),
    Nonsense("half a body", post("/volumes/create", JSON + "Content-Length: 500\r\n", b'{"Name": "a"'), ends=True),
    Nonsense("half an archive", post("/images/load", "Content-Length: 50000\r\n", b"x" * 600), ends=True),
    Nonsense("half a chunk", post("/services/create", CHUNKED, b'50\r\n{"Name": "a"'), ends=True),
    Nonsense("chunks that stop", post("/networks/create", CHUNKED, b'c\r\n{"Name": "a"\r\n'), ends=True),
    Nonsense("no answer wanted", GET + b"\r\n", ends=True),
    Nonsense("no answer wanted of a stream", b"GET /events HTTP/1.1\r\nHost: docker\r\n\r\n", ends=True),
    Nonsense("many requests, no answer wanted", (b"GET /info HTTP/1.1\r\nHost: docker\r\n\r\n") * 200, ends=True),
)
NEVER_FINISHED = (
    b"",
    b"GET /ver",
    GET,
    post("/volumes/create", JSON + "Content-Length: 500\r\n", b'{"Name": "a"'),
    post("/services/create", CHUNKED, b'50\r\n{"Name": "a"'),
    post("/swarm/join", CHUNKED, b""),
    post("/images/load", "Transfer-Encoding: chunked\r\n", b"5\r\nabcde\r\n"),
)


async def send(path: str, nonsense: Nonsense) -> str:
    """What is wrong with what happened; empty: nothing."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        try:
            writer.write(nonsense.sent)
            if nonsense.ends:
                await asyncio.wait_for(writer.drain(), ANSWERED_WITHIN)
                return ""
            # an answer may come before all is sent, and then nobody reads the rest
            head = await asyncio.wait_for(reader.readuntil(b"\r\n"), ANSWERED_WITHIN)
            status = int(head.split()[1])
        except (ConnectionError, asyncio.IncompleteReadError):
            status = 0
        except TimeoutError:
            return f"{nonsense.name}: no answer in {ANSWERED_WITHIN} s"
        return "" if status in nonsense.statuses else f"{nonsense.name}: {status}, not {nonsense.statuses}"
    finally:
        writer.close()


async def version(path: str) -> bool:
    """Whether the server answers a question as it should."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(GET + b"Connection: close\r\n\r\n")
        said = await asyncio.wait_for(reader.read(), ANSWERED_WITHIN)
        return "ApiVersion" in json.loads(said.partition(b"\r\n\r\n")[2])
    finally:
        writer.close()


async def send_all(path: str) -> list[str]:
    """Every kind once, beside many connections that never finish; what was wrong."""
    waiting = [await asyncio.open_unix_connection(path) for _ in range(IDLE)]
    try:
        for number, (_, writer) in enumerate(waiting):
            writer.write(NEVER_FINISHED[number % len(NEVER_FINISHED)])
        wrong = []
        for nonsense in NONSENSE:
            wrong.append(await send(path, nonsense))
            if not await version(path):
                wrong.append(f"{nonsense.name}: afterwards it did not answer as it should")
        return [line for line in wrong if line]
    finally:
        for _, writer in waiting:
            writer.close()
