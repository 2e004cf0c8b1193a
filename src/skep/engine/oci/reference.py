"""Names of images as Docker reads and writes them. Pure.

`nginx` means `docker.io/library/nginx:latest`; people see the short (familiar) form, registries the long one. The grammar and the texts are
those of github.com/distribution/reference, because scripts and people know them.
"""

from __future__ import annotations

import functools
import re

import msgspec

from skep.errors import Invalid

DEFAULT_DOMAIN = "docker.io"
OFFICIAL = "library"
MAX_NAME = 255
MAX_REFERENCE = 4096

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*"
_HOST = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_HOST}(?:\.{_HOST})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?", re.ASCII
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_TAG_ALONE = re.compile(_TAG)
_DIGEST_SIZES = {"sha256": 64, "sha384": 96, "sha512": 128}


class Reference(msgspec.Struct, frozen=True, order=True):
    """A parsed name. `tag` and `digest` are empty when not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """`docker.io/library/nginx`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """`nginx`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        head, _, rest = self.path.partition("/")
        return rest if head == OFFICIAL and rest and "/" not in rest else self.path

    @property
    def familiar(self) -> str:
        """`nginx:1.27@sha256:...`, with what is there of tag and digest."""
        return self.familiar_name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def full(self) -> str:
        """`docker.io/library/nginx:1.27@sha256:...`."""
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def target(self) -> str:
        """What the registry is asked for: the digest, else the tag, else `latest`."""
        return self.digest or self.tag or "latest"

    def tagged(self) -> Reference:
        """With the tag `latest` where neither tag nor digest was given."""
        return self if self.tag or self.digest else Reference(self.domain, self.path, "latest")


@functools.lru_cache(4096)
def parse(text: str) -> Reference:
    """A reference from what a user wrote. Raises Invalid with Docker's text."""
    if len(text) > MAX_REFERENCE or not text.isprintable():
        raise Invalid("invalid reference format")
    if _IDENTIFIER.fullmatch(text):
        raise Invalid(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split(text)
    name = remainder.partition(":")[0]
    if name.lower() != name:
        raise Invalid(f"invalid reference format: repository name ({name}) must be lowercase")
    found = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if found is None:
        raise Invalid("invalid reference format")
    if len(found["path"]) > MAX_NAME:
        raise Invalid(f"repository name must not be more than {MAX_NAME} characters")
    if digest := found["digest"]:
        check_digest(digest)
    return Reference(found["domain"], found["path"], found["tag"] or "", digest or "")


def registry_of(server: str) -> Reference:
    """Something on the registry that `docker login` names (`host[:port]`, or a URL; empty: Docker Hub). Raises Invalid.

    A host may have no dot here, where in an image's name it would be a user of Docker Hub: that one's password is not for Docker Hub.
    """
    host = (server.partition("://")[2] or server).partition("/")[0]
    if host in ("", DEFAULT_DOMAIN, "index.docker.io", "registry-1.docker.io"):
        return Reference(DEFAULT_DOMAIN, "login/login")
    named = parse(f"{host}/login/login")
    return Reference(host, "login/login") if named.domain == DEFAULT_DOMAIN else named


def check_digest(digest: str) -> None:
    """Raises Invalid unless it is `sha256:` and 64 lower-case hex digits, or another registered algorithm in its own length."""
    algorithm, _, hexadecimal = digest.partition(":")
    if algorithm not in _DIGEST_SIZES:
        raise Invalid("unsupported digest algorithm")
    if len(hexadecimal) != _DIGEST_SIZES[algorithm]:
        raise Invalid("invalid checksum digest length")
    if not re.fullmatch(r"[a-f0-9]+", hexadecimal):
        raise Invalid("invalid checksum digest format")


def is_tag(text: str) -> bool:
    return _TAG_ALONE.fullmatch(text) is not None


def _split(text: str) -> tuple[str, str]:
    """Domain and the rest: the first part is a host if it has a dot, a port or a capital, or is `localhost`."""
    head, slash, rest = text.partition("/")
    if not slash or (not any(c in head for c in ".:") and head != "localhost" and head.lower() == head):
        domain, remainder = DEFAULT_DOMAIN, text
    else:
        domain, remainder = head, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = f"{OFFICIAL}/{remainder}"
    return domain, remainder
