"""Registry credentials and challenges: X-Registry-Auth, WWW-Authenticate. Pure.

Secrets live only in `Credentials`, whose repr hides them; nothing here logs.
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

MAX_HEADER = 64 << 10


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What `docker login` keeps. All empty: anonymous."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """A refresh token of an OAuth2 server."""
    registry_token: str = ""
    """A bearer token to be sent as it is."""

    def __repr__(self) -> str:
        return "Credentials(...)" if self else "Credentials()"

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """Value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _AuthConfig(msgspec.Struct, frozen=True, kw_only=True):
    username: str | None = None
    password: str | None = None
    auth: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    scheme: str
    """Lower case: basic, bearer."""
    parameters: dict[str, str]


def credentials(header: str) -> Credentials:
    """From X-Registry-Auth (base64url JSON, padding optional). What is none counts as anonymous, as in Docker: clients send anything there
    (aiodocker the word FOOBAR) where they have no credentials, and the registry refuses who may not read or write.
    """
    if not header or len(header) > MAX_HEADER:
        return Credentials()
    text = header.strip().replace("+", "-").replace("/", "_").rstrip("=")
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=_AuthConfig)
        username, password = found.username or "", found.password or ""
        if found.auth and not username:
            username, _, password = base64.b64decode(found.auth).decode().partition(":")
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError):
        return Credentials()
    return Credentials(
        username=username,
        password=password.rstrip("\0"),
        identity_token=found.identitytoken or "",
        registry_token=found.registrytoken or "",
    )


_SCHEME = re.compile(r"\s*,?\s*([A-Za-z]+)(?:\s+|$)")
_PARAMETER = re.compile(r'\s*,?\s*([A-Za-z_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


def challenges(headers: list[str]) -> list[Challenge]:
    """What WWW-Authenticate headers ask for (RFC 7235), in order."""
    found: list[Challenge] = []
    for header in headers:
        at, header = 0, header[:MAX_HEADER]
        while match := _SCHEME.match(header, at):
            at = match.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(header, at):
                at = parameter.end()
                quoted = parameter[2]
                parameters[parameter[1].lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
            found.append(Challenge(scheme=match[1].lower(), parameters=parameters))
    return found
