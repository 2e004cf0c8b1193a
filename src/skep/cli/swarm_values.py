"""What the flags of `skep swarm` take. Each raises Bad with Docker's sentence."""

from __future__ import annotations

from skep.cli.words import Bad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def listen_address(text: str) -> str:
    """Whatever of `0.0.0.0:2377` is not said is added."""
    host, found, port = text.rpartition(":")
    if not found or text.endswith("]"):
        host, port = text, ""
    if port and not port.isdigit():
        raise Bad(f"invalid bind address format: {text}")
    return f"{host or '0.0.0.0'}:{port or 2377}"


def subnet(text: str) -> str:
    from ipaddress import ip_network

    try:
        return str(ip_network(text.strip(), strict=False))
    except ValueError:
        raise Bad(f"invalid string being converted to CIDR: {text}") from None


def external_ca(text: str) -> dict[str, Any]:
    """`protocol=cfssl,url=https://…,cacert=FILE`."""
    found: dict[str, Any] = {"Protocol": "", "URL": "", "CACert": ""}
    options: dict[str, str] = {}
    for part in text.split(","):
        key, equal, value = part.partition("=")
        if not equal:
            raise Bad(f"invalid field '{part}' must be a key=value pair")
        key = key.strip().lower()
        if key == "protocol":
            if value.lower() != "cfssl":
                raise Bad(f"unrecognized external CA protocol {value}")
            found["Protocol"] = value.lower()
        elif key == "url":
            found["URL"] = value
        elif key == "cacert":
            found["CACert"] = pem_file(value)
        else:
            options[key] = value
    if not found["Protocol"]:
        raise Bad("the external-ca option needs a protocol= parameter")
    if not found["URL"]:
        raise Bad("the external-ca option needs a url= parameter")
    return {**found, "Options": options} if options else found


def pem_file(path: str) -> str:
    try:
        with open(path) as file:
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        raise Bad(f"open {path}: {getattr(error, 'strerror', None) or error}".lower()) from None
    if "-----BEGIN " not in text:
        raise Bad("file contents must be PEM-encoded")
    return text
