"""Names of images: `alpine` is `docker.io/library/alpine:latest`. Docker's rules and sentences; no I/O."""

from __future__ import annotations

import re

from skep.cli.shell import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from skep.cli.flags import Values

HUB = "docker.io"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_PART}(?:/{_PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>[a-zA-Z0-9+._-]+:[0-9a-fA-F]{{32,}}))?"
)
ID = re.compile(r"(sha256:)?[0-9a-f]{64}")


class Named:
    """`tag` and `digest` are "" where the name has none."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def name(self) -> str:
        """In full, without tag and digest."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """Without what goes without saying, without tag and digest."""
        return self.path.removeprefix("library/") if self.domain == HUB else self.name

    @property
    def wanted(self) -> str:
        """What a registry is asked for: a digest goes before a tag, a missing one is latest."""
        return self.digest or self.tag or "latest"

    @property
    def shown(self) -> str:
        """The familiar name with its tag (latest is added) or digest."""
        tag = self.tag or ("" if self.digest else "latest")
        return self.familiar + (f":{tag}" if tag else "") + (f"@{self.digest}" if self.digest else "")


def named(text: str) -> Named:
    """Raises Failed."""
    if re.fullmatch(r"[0-9a-f]{64}", text):
        raise Failed(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, slash, rest = text.partition("/")
    if not slash or (not re.search(r"[.:]", domain) and domain != "localhost" and domain.lower() == domain):
        domain, rest = HUB, text
    if domain == "index.docker.io":
        domain = HUB
    if domain == HUB and "/" not in rest:
        rest = f"library/{rest}"
    path = rest.partition("@")[0].partition(":")[0]
    if path.lower() != path:
        raise Failed(f"invalid reference format: repository name ({path}) must be lowercase")
    found = _NAME.fullmatch(f"{domain}/{rest}")
    if not found or len(found["path"]) > 255:
        raise Failed("invalid reference format")
    return Named(domain, found["path"], found["tag"] or "", found["digest"] or "")


def check_trust(values: Values) -> None:
    if not values.get("disable-content-trust", True):
        raise Failed("--disable-content-trust=false: skep verifies no signatures")
