"""Where a registry is and how to reach it: endpoints, proxies, and the errors of a connection in the words of Docker (Go's net/http).

Plain HTTP is spoken only to loopback and to registries listed as insecure; mirrors say their scheme themselves. Proxies from the
environment serve TLS endpoints only: a registry spoken to in the clear is a local one.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import ssl
import urllib.request
from collections.abc import Collection, Mapping, Sequence

import aiohttp
import msgspec
from yarl import URL

from skep.errors import Forbidden, NotFound, SkepError, Unauthorized

HUB = "registry-1.docker.io"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    base: str
    """`https://host:port`, without a slash at the end."""
    mirror: bool = False
    verify: bool = True
    """Check the certificate."""

    @property
    def plain(self) -> bool:
        return self.base.startswith("http://")


class RegistryError(SkepError):
    """What a registry answered: `manifest unknown: manifest unknown`. `code` is the distribution API's."""

    def __init__(self, message: str, *, code: str = "", status: int = 500) -> None:
        super().__init__(message)
        self.code = code
        self.http_status = status


class ConnectionFailed(SkepError):
    """No answer at all: the text is Go's (`Get "http://h:5000/v2/": dial tcp 10.0.0.1:5000: connect: connection refused`)."""


def translate(error: RegistryError) -> SkepError:
    """With the HTTP status that Docker's API gives it."""
    kinds: dict[str, type[SkepError]] = {
        "UNAUTHORIZED": Unauthorized,
        "DENIED": Forbidden,
        "MANIFEST_UNKNOWN": NotFound,
        "NAME_UNKNOWN": NotFound,
        "BLOB_UNKNOWN": NotFound,
    }
    return kinds.get(error.code, SkepError)(error.text)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_insecure(domain: str, insecure: Collection[str]) -> bool:
    """Loopback, listed by name (`registry:5000`), or by a network that holds its address (`10.0.0.0/8`)."""
    host = split_host(domain)
    if is_loopback(host) or domain in insecure or host in insecure:
        return True
    try:
        address = ipaddress.ip_address(host)
        return any(address in ipaddress.ip_network(entry, strict=False) for entry in insecure if "/" in entry)
    except ValueError:
        return False


def split_host(domain: str) -> str:
    if domain.startswith("["):
        return domain[1:].partition("]")[0]
    return domain.partition(":")[0]


def endpoints(domain: str, insecure: Collection[str], mirrors: Mapping[str, Sequence[str]]) -> list[Endpoint]:
    """In the order to try: mirrors, the registry over TLS, and in the clear where that is allowed."""
    found = []
    for mirror in mirrors.get(domain, ()):
        base = (mirror if "://" in mirror else f"https://{mirror}").rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise SkepError(f"invalid mirror {mirror}: must be http:// or https://")
        found.append(Endpoint(base=base, mirror=True, verify=not is_insecure(base.partition("://")[2], insecure)))
    host = HUB if domain == "docker.io" else domain
    loose = is_insecure(domain, insecure)
    found.append(Endpoint(base=f"https://{host}", verify=not loose))
    if loose:
        found.append(Endpoint(base=f"http://{host}", verify=False))
    return found


def proxy_for(url: URL) -> str | None:
    if url.scheme != "https" or is_loopback(url.host or ""):
        return None
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get("https")


_CALL = re.compile(r"\[Errno (\d+)\] Connect call failed \('([^']+)', (\d+)")
_REASONS = {
    errno.ECONNREFUSED: "connect: connection refused",
    errno.EHOSTUNREACH: "connect: no route to host",
    errno.ENETUNREACH: "connect: network is unreachable",
    errno.ETIMEDOUT: "i/o timeout",
}


def describe(error: Exception, url: URL, method: str = "Get") -> str:
    """A connection's failure as Go says it; of what cannot even be sent (a token of two lines, say) the reason."""
    shown = f'{method} "{url.with_user(None).with_query(None).with_fragment(None)}": '
    if isinstance(error, TimeoutError):
        return shown + "net/http: request canceled (Client.Timeout exceeded while awaiting headers)"
    if isinstance(error, aiohttp.InvalidURL):  # a host of digits that make no address: in Go a name like any other
        return shown + f"dial tcp: lookup {url.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return shown + f"dial tcp: lookup {url.host}: " + ("i/o timeout" if isinstance(error.os_error, TimeoutError) else "no such host")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return shown + f"tls: failed to verify certificate: x509: {certificate_reason(error.certificate_error)}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return shown + ("http: server gave HTTP response to HTTPS client" if gave_http(error) else f"tls: {error.os_error}")
    if isinstance(error, aiohttp.ClientConnectorError):
        calls = _CALL.findall(str(error.os_error))
        if calls:
            number, address, port = calls[-1]
        else:
            number, address, port = str(error.os_error.errno or 0), url.host or "", str(url.port)
            if own := re.search(r"\('([^']+)', (\d+)", str(error.os_error)):
                address, port = own[1], own[2]
        address = f"[{address}]" if ":" in address else address
        return shown + f"dial tcp {address}:{port}: " + _REASONS.get(int(number), f"connect: {error.os_error.strerror}")
    return shown + (str(error) or type(error).__name__)


def gave_http(error: aiohttp.ClientConnectorSSLError) -> bool:
    reason = getattr(error.os_error, "reason", "") or ""
    return reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")


def certificate_reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return str(error)
