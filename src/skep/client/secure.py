"""A TLS connection whose two ways end one by one: `skep run -i` over TCP says that its input has ended and goes on reading.

Python's SSLSocket cannot: its shutdown() drops TLS altogether. So the protocol runs in memory (SSLObject) and this class carries the bytes.
"""

from __future__ import annotations

import socket
import ssl


class SecureSocket:
    """What the client uses of a socket. Errors are OSErrors."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)
        self._unsent = b""
        self._early = b""
        """Read before the input's end was told."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._take():
                    raise ConnectionResetError("the daemon ended the TLS handshake: does it know our certificate?") from None
            else:
                self._flush()
                return

    def fileno(self) -> int:
        return self.sock.fileno()

    def setblocking(self, blocking: bool) -> None:
        self.sock.setblocking(blocking)

    def close(self) -> None:
        self.sock.close()

    def pending(self) -> int:
        """Bytes that have come and that select() on the descriptor does not tell of."""
        return len(self._early) + self._tls.pending() + self._in.pending

    def recv(self, size: int) -> bytes:
        """b"" at the end. Raises BlockingIOError like a socket."""
        if self._early:
            data, self._early = self._early[:size], self._early[size:]
            return data
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._flush()
                if not self._take():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def send(self, data: bytes) -> int:
        """Some of it. Raises BlockingIOError when what was given before has not gone yet."""
        self._flush()
        if self._unsent:
            raise BlockingIOError
        taken = self._tls.write(data[: 1 << 16])
        self._flush()
        return taken

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.send(data) :]

    def shutdown(self, _: int) -> None:
        """close_notify: no more from us. What has come already is read first, OpenSSL would take it for a mistake."""
        try:
            while block := self._tls.read(1 << 16):
                self._early += block
        except ssl.SSLError:
            pass
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass
        self.sock.setblocking(True)
        self._flush()
        self.sock.setblocking(False)

    def _take(self) -> bool:
        """More from the network; False at its end."""
        data = self.sock.recv(1 << 16)
        if data:
            self._in.write(data)
        return bool(data)

    def _flush(self) -> None:
        self._unsent += self._out.read()
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            pass


def secured(sock: socket.socket, host: str, folder: str, verify: bool) -> SecureSocket:
    context = ssl.create_default_context(cafile=f"{folder}/ca.pem" if folder and verify else None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if folder:
        context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    return SecureSocket(sock, context, host)
