"""`--publish 8080:80/udp` and `--publish target=80,published=8080,mode=host`: as the API wants them."""

from __future__ import annotations

from skep.cli.options import LONG, fields_of
from skep.cli.words import Bad, parse_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def port(text: str) -> list[dict[str, Any]]:
    """Short (`[ip:][published:]target[/protocol]`, ranges) or long (`target=80,published=8080,mode=host`)."""
    return _long_port(text) if LONG.search(text) else _short_ports(text)


def _long_port(text: str) -> list[dict[str, Any]]:
    found: dict[str, Any] = {"Protocol": "tcp", "PublishMode": "ingress"}
    for field in fields_of(text):
        key, equal, value = field.lower().partition("=")
        if not equal or not key:
            raise Bad(f"invalid field: {field}")
        if key == "protocol":
            if value not in ("tcp", "udp", "sctp"):
                raise Bad(f"invalid protocol value '{value}'")
            found["Protocol"] = value
        elif key == "mode":
            if value not in ("ingress", "host"):
                raise Bad(f"invalid publish mode value ({value}): must be either 'ingress' or 'host'")
            found["PublishMode"] = value
        elif key in ("target", "published"):
            try:
                found["TargetPort" if key == "target" else "PublishedPort"] = parse_uint(value, 16)
            except Bad as error:
                why = str(error).rpartition(": ")[2]
                raise Bad(f"invalid {key} port ({value}): value must be an integer: {why}") from None
        else:
            raise Bad(f"invalid field key: {key}")
    if not found.get("TargetPort"):
        raise Bad("missing mandatory field 'target'")
    return [_port(found["TargetPort"], found.get("PublishedPort", 0), found["Protocol"], found["PublishMode"])]


def _port(target: int, published: int, protocol: str, mode: str) -> dict[str, Any]:
    found = {"Protocol": protocol, "TargetPort": target, "PublishMode": mode}
    if published:
        found["PublishedPort"] = published
    return found


def _short_ports(text: str) -> list[dict[str, Any]]:
    spec, _, protocol = text.partition("/")
    address, published, target = _port_parts(spec)
    if not target:
        raise Bad(f"no port specified: {text}<empty>")
    if protocol and protocol.lower() not in ("tcp", "udp", "sctp"):
        raise Bad(f"invalid proto: {protocol}")
    first, last = port_range(target, "containerPort")
    begin, end = port_range(published, "hostPort") if published else (0, 0)
    if published and end - begin != last - first and first != last:
        raise Bad(f"invalid ranges specified for container and host Ports: {target} and {published}")
    if address:
        _check_address(address)
        raise Bad("hostip is not supported")
    if published and first == last and begin != end:
        return [_port(first, number, (protocol or "tcp").lower(), "ingress") for number in range(begin, end + 1)]
    return [_port(first + n, begin + n if published else 0, (protocol or "tcp").lower(), "ingress") for n in range(last - first + 1)]


def _check_address(text: str) -> None:
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        raise Bad(f"invalid IP address: {text}") from None


def _port_parts(spec: str) -> tuple[str, str, str]:
    if spec.startswith("["):
        address, _, rest = spec.partition("]:")
        published, _, target = rest.rpartition(":")
        return address[1:], published, target
    parts = spec.split(":")
    if len(parts) > 3:
        raise Bad(f"invalid IP address: {':'.join(parts[:-2])}")
    return (parts[0] if len(parts) == 3 else "", parts[-2] if len(parts) > 1 else "", parts[-1])


def port_range(text: str, what: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        begin = parse_uint(low, 16)
        end = parse_uint(high, 16) if dash else begin
    except Bad:
        raise Bad(f"invalid {what}: {text}") from None
    if end < begin:
        raise Bad(f"invalid {what}: {text}")
    return begin, end
