"""TLS for the API on TCP: mutual, and with half-closed connections, which `docker exec` and `attach` live on.

A client that has sent all of its input says so by close_notify (Go: CloseWrite) and goes on reading. asyncio's TLS takes that for the end
of both ways and tears the connection down, so that the command's output is lost; it cannot half-close either. `HalfClosing` mends both, by
overriding private methods of asyncio.sslproto: tests/contract/test_tls.py must pass on every Python that is supported.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skep.errors import ConfigError

SHUTDOWN_WITHIN = 2.0
"""Seconds that a peer has to answer close_notify."""
HANDSHAKE_WITHIN = 10.0


# asyncio's private classes, of which the type stubs know half
_PlainTransport: Any = sslproto._SSLProtocolTransport
_Protocol: Any = sslproto.SSLProtocol


class _Transport(_PlainTransport):  # type: ignore[misc]
    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._ssl_protocol is not None:
            self._ssl_protocol.half_close()


class HalfClosing(_Protocol):  # type: ignore[misc]
    """A true answer of the application's `eof_received` keeps the way back open; `write_eof` of its transport sends close_notify alone."""

    max_size = 16384
    """Of one read: asyncio's 256 KiB are held by every connection."""

    _app_transport: Any
    _app_transport_created: bool
    _app_state: Any
    _kept_open = False
    _reading = False
    _eof_wanted = False
    _eof_sent = False

    def _get_app_transport(self, context: Any = None) -> Any:
        if self._app_transport is None:
            if self._app_transport_created:
                raise RuntimeError("the transport was made once already")
            self._app_transport = _Transport(self._loop, self)
            self._app_transport_created = True
        return self._app_transport

    def _do_read__copied(self) -> None:
        self._reading = True
        try:
            super()._do_read__copied()
        finally:
            self._reading = False

    def _call_eof_received(self) -> None:
        if self._app_state == sslproto.AppProtocolState.STATE_CON_MADE:
            self._app_state = sslproto.AppProtocolState.STATE_EOF
            self._kept_open = bool(self._app_protocol.eof_received())

    def _start_shutdown(self) -> None:
        if not (self._reading and self._kept_open):
            super()._start_shutdown()

    def half_close(self) -> None:
        self._eof_wanted = True
        self._do_write()

    def _do_write(self) -> None:
        super()._do_write()
        if self._eof_wanted and not self._eof_sent and not self._write_backlog:
            self._eof_sent = True
            try:
                self._sslobj.unwrap()
            except (ssl.SSLWantReadError, ssl.SSLSyscallError):
                pass  # sent; the peer's own will come in its time
            except ssl.SSLError as error:
                self._fatal_error(error, "close_notify cannot be sent")
                return
            self._process_outgoing()


def server_context(certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """Clients must have a certificate of `ca`. Raises ConfigError naming the file that cannot be used."""
    for what, path in (("tlscert", certificate), ("tlskey", key), ("tlscacert", ca)):
        if not path:
            raise ConfigError(f"TCP is served with mutual TLS only: name a file with --{what}")
        if not Path(path).is_file():
            raise ConfigError(f"--{what} {path}: no such file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--tlscert {certificate} and --tlskey {key}: {error.strerror or error}") from None
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--tlscacert {ca}: {error.strerror or error}") from None
    return context


async def start_server(factory: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext, listener: socket.socket) -> asyncio.Server:
    """As `loop.create_server(ssl=...)`, with HalfClosing in the place of asyncio's protocol."""
    loop = asyncio.get_running_loop()

    def protocol() -> HalfClosing:
        return HalfClosing(
            loop,
            factory(),
            context,
            None,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_WITHIN,
            ssl_shutdown_timeout=SHUTDOWN_WITHIN,
        )

    return await loop.create_server(protocol, sock=listener)
