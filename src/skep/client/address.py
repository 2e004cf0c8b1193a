"""Where the daemon is: `unix:///path`, `tcp://host:port` with or without TLS, as Docker's own environment variables have it."""

from __future__ import annotations

from skep.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_HOST = "unix:///run/skep/docker.sock"
"""skep.config's DEFAULT_SOCKET; said again here because importing the settings costs a third of a command (a test compares the two)."""


class Address:
    """`tls` is None for plain text, else the folder with ca.pem, cert.pem and key.pem, and whether the server is verified."""

    __slots__ = ("host", "path", "port", "text", "tls")

    def __init__(self, text: str, path: str = "", host: str = "", port: int = 0, tls: tuple[str, bool] | None = None) -> None:
        self.text = text
        self.path = path
        self.host = host
        self.port = port
        self.tls = tls


def parse_address(text: str, tls: tuple[str, bool] | None = None) -> Address:
    """Raises ConfigError."""
    scheme, found, rest = text.partition("://")
    if not found:
        raise ConfigError(f"unable to parse docker host `{text}`")
    if scheme == "unix":
        if not rest:
            raise ConfigError(f"unable to parse docker host `{text}`: no path")
        return Address(text, path=rest)
    if scheme in ("tcp", "http", "https"):
        host, _, port = rest.partition("/")[0].rpartition(":")
        if not host:
            host, port = port, "2376" if tls or scheme == "https" else "2375"
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"unable to parse docker host `{text}`: bad port {port!r}")
        return Address(text, host=host.strip("[]"), port=int(port), tls=tls or (("", True) if scheme == "https" else None))
    raise ConfigError(f"unsupported scheme {scheme!r} in host `{text}`: use unix://PATH or tcp://HOST:PORT")


def find_address(given: str, environ: Mapping[str, str], tls: tuple[str, bool] | None = None) -> Address:
    """`-H`, else SKEP_HOST, else DOCKER_HOST, else skepd's own socket."""
    text = given or environ.get("SKEP_HOST") or environ.get("DOCKER_HOST") or DEFAULT_HOST
    if tls is None and environ.get("DOCKER_TLS_VERIFY") and not text.startswith("unix:"):
        folder = environ.get("DOCKER_CERT_PATH") or environ.get("HOME", "") + "/.docker"
        tls = (folder, True)
    return parse_address(text, tls)
