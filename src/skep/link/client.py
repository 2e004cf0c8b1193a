"""A node's side of port 2377: joining, renewing, and the connections for session and logs.

Every failure is one sentence that names the manager and what was wrong; TLS's own words for the common ones are translated. See
docs/link.md.
"""

from __future__ import annotations

import hmac
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

import aiohttp
import msgspec

from skep.clock import Clock
from skep.errors import SkepError, Unavailable
from skep.ids import Random
from skep.link.channel import FROM_MANAGER_LIMIT, LOG_FRAME_LIMIT, Channel, Refused
from skep.link.messages import Failed, JoinCall, Joined, RenewCall, Renewed
from skep.link.socket import CLOSE_SECONDS, SocketChannel
from skep.link.tls import MANAGER_NAME, Certificates, digest, issued_by, joining_context, new_key, parse_token

T = TypeVar("T")

CONNECT_SECONDS = 5.0
CALL_SECONDS = 20.0
ANSWER_LIMIT = 256 << 10
"""Bytes of an answer to a single question."""

_ALERTS = {
    "UNKNOWN_CA": "it does not know the authority that issued this node's certificate: this node belongs to another cluster",
    "CERTIFICATE_EXPIRED": "this node's certificate has expired: leave the swarm and join it again",
    "CERTIFICATE_REVOKED": "this node's certificate is revoked",
    "BAD_CERTIFICATE": "it refuses this node's certificate",
    "DECRYPT_ERROR": "it refuses this node's certificate",
    "CERTIFICATE_UNKNOWN": "it refuses this node's certificate",
}


class RootMismatch(SkepError):
    """The manager's root is not the one the token names: somebody else answers, or the token is another cluster's."""


async def join(remotes: Sequence[str], token: str, certificates: Certificates, *, availability: str = "") -> Joined:
    """Join the cluster of these managers (`ip:port`), the first that answers: certificate files are written, nothing else.

    Raises SkepError `invalid join token` before anything is sent, RootMismatch `remote CA does not match fingerprint...`, SkepError with
    the manager's reason (`... A valid join token is necessary to join this cluster`), Unavailable when none can be reached. Nothing is
    written then.
    """
    expected, _ = parse_token(token)
    unreachable = []
    for remote in remotes:
        try:
            root = (await _call(remote, "GET", "/ca", joining_context(), None)).decode(errors="replace")
            if not hmac.compare_digest(digest(root), expected):
                raise RootMismatch(f"remote CA does not match fingerprint. Expected: {expected}")
            key, csr = new_key()
            call = JoinCall(token=token, csr=csr, availability=availability)
            joined = _decoded(remote, await _call(remote, "POST", "/join", joining_context(root), call), Joined)
        except Unavailable as error:
            unreachable.append(error.text)
            continue
        if not issued_by(joined.certificate, root):
            raise SkepError(f"manager {remote} gave a certificate that its own authority did not issue")
        certificates.store(root, joined.certificate, key)
        return msgspec.structs.replace(joined, managers=joined.managers or (remote,))
    raise Unavailable("; ".join(unreachable) or "no manager's address was given")


class Client:
    """The connections of a node that has a certificate. `managers()` gives the known addresses (`ip:port`), asked anew each time."""

    def __init__(self, certificates: Certificates, managers: Callable[[], Sequence[str]], clock: Clock, rng: Random) -> None:
        self._certificates = certificates
        self._managers = managers
        self._clock = clock
        self._rng = rng
        self._context = certificates.client_context()
        self._current = ""

    async def session(self) -> Channel:
        """A connection for a session, to one of the managers at random. Raises Unavailable or Refused."""
        managers = self._managers()
        if not managers:
            raise Unavailable("no manager's address is known")
        self._check()
        self._current = managers[self._rng.randrange(len(managers))]
        return await self._socket(self._current, "/session", FROM_MANAGER_LIMIT)

    async def logs(self, stream: str) -> Channel:
        """A connection for a log stream, to the manager that has the session."""
        return await self._socket(self._current, f"/logs/{stream}", LOG_FRAME_LIMIT)

    async def renew(self) -> None:
        """Get a new certificate with a new key, and write both."""
        self._check()
        managers = self._managers()
        if not managers:
            raise Unavailable("no manager's address is known")
        remote = managers[self._rng.randrange(len(managers))]
        key, csr = new_key()
        renewed = _decoded(remote, await _call(remote, "POST", "/renew", self._context, RenewCall(csr=csr)), Renewed)
        root = self._certificates.root()
        if not issued_by(renewed.certificate, root):
            raise SkepError(f"manager {remote} gave a certificate that its own authority did not issue")
        self._certificates.store(root, renewed.certificate, key)

    def _check(self) -> None:
        """What TLS would say less clearly."""
        cert = self._certificates.certificate()
        if cert.not_after <= self._clock.now():
            raise Refused(f"this node's certificate has expired (serial {cert.identity.serial}): leave the swarm and join it again")

    async def _socket(self, remote: str, path: str, limit: int) -> Channel:
        held = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS))
        try:
            socket = await held.ws_connect(
                f"https://{remote}{path}",
                ssl=self._context,
                server_hostname=MANAGER_NAME,
                max_msg_size=limit,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
            )
        except aiohttp.WSServerHandshakeError as error:
            await held.close()
            raise Refused(f"manager {remote} refuses this node ({error.status})") from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            await held.close()
            raise _failure(remote, error) from None
        except BaseException:
            await held.close()
            raise
        return SocketChannel(socket, held=held)


async def _call(remote: str, method: str, path: str, context: ssl.SSLContext, body: msgspec.Struct | None) -> bytes:
    """One question. Raises Unavailable when the manager cannot be reached, SkepError with its reason when it says no."""
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=CONNECT_SECONDS)
    data = msgspec.json.encode(body) if body is not None else None
    name = MANAGER_NAME if context.check_hostname else None
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, f"https://{remote}{path}", ssl=context, data=data, server_hostname=name) as response,
        ):
            answer = bytearray()
            async for chunk in response.content.iter_chunked(16384):
                answer += chunk
                if len(answer) > ANSWER_LIMIT:
                    raise SkepError(f"manager {remote} gave an answer without end")
            if response.status == 200:
                return bytes(answer)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise _failure(remote, error) from None
    try:
        failed = msgspec.json.decode(bytes(answer), type=Failed)
    except msgspec.DecodeError:
        raise SkepError(f"manager {remote} answered {response.status}: is it a manager's port?") from None
    if failed.removed:
        raise Refused(failed.message, removed=True)
    raise SkepError(failed.message)


def _decoded(remote: str, answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except msgspec.DecodeError as error:
        raise SkepError(f"manager {remote} gave an answer that cannot be read: {error}") from None


def _failure(remote: str, error: BaseException) -> SkepError:
    """One sentence: which manager, and what was wrong."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, aiohttp.ClientConnectorCertificateError):
            seen = seen.certificate_error
        elif isinstance(seen, aiohttp.ClientConnectorError):
            # its own text names the SSL context also where there was no connection at all
            seen = seen.os_error
        if isinstance(seen, ssl.SSLCertVerificationError):
            return Refused(f"manager {remote}: its certificate is not one of this cluster's managers ({seen.verify_message})")
        if isinstance(seen, OSError) and "SSL" in str(seen):
            for word, text in _ALERTS.items():
                if word in str(seen):
                    return Refused(f"manager {remote}: {text}")
            return Unavailable(f"manager {remote}: TLS failed ({seen})")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, TimeoutError):
        return Unavailable(f"manager {remote}: no answer")
    reason = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(reason, OSError) and reason.errno and not isinstance(reason, socket.gaierror):
        text = os.strerror(reason.errno).lower()
    else:
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return Unavailable(f"manager {remote}: {text}")
