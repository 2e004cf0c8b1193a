"""What single flags of `skep run` mean: each parser takes a flag's text, raises Bad in Docker's words, and returns what the API wants."""

from __future__ import annotations

import re

from skep.cli.flags import quoted
from skep.cli.options import check_address, fields_of
from skep.cli.ports import port_range
from skep.cli.words import Bad, parse_bytes, parse_int, parse_uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STREAMS = ("stdin", "stdout", "stderr")


def stream(text: str) -> str:
    if text.lower() not in STREAMS:
        raise Bad("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def extra_host(text: str) -> str:
    """`host:ip` or `host=ip`, `host-gateway` for the node's own address."""
    name, found, address = text.partition("=") if "=" in text else text.partition(":")
    if not found or not name:
        raise Bad(f"bad format for add-host: {quoted(text)}")
    if address != "host-gateway":
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        check_address(address, f"invalid IP address in add-host: {quoted(address)}")
    return f"{name}:{address}"


def swap(text: str) -> int:
    return -1 if text == "-1" else parse_bytes(text)


def weight_device(text: str) -> dict[str, Any]:
    path, weight = _device_and(text)
    if not weight.isdigit() or not (weight == "0" or 10 <= int(weight) <= 1000):
        raise Bad(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(weight)}


def rate_device(text: str) -> dict[str, Any]:
    path, rate = _device_and(text)
    try:
        return {"Path": path, "Rate": parse_bytes(rate)}
    except Bad:
        raise Bad(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. "
            "Unit is optional and can be kb, mb, or gb"
        ) from None


def count_device(text: str) -> dict[str, Any]:
    path, rate = _device_and(text)
    try:
        return {"Path": path, "Rate": parse_uint(rate)}
    except Bad:
        raise Bad(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive integer"
        ) from None


def _device_and(text: str) -> tuple[str, str]:
    path, found, value = text.partition(":")
    if not found or not path:
        raise Bad(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise Bad(f"bad format for device path: {text}")
    return path, value


def cgroup_rule(text: str) -> str:
    if not re.fullmatch(r"[acb] (\d+|\*):(\d+|\*) [rwm]{1,3}", text):
        raise Bad(f"invalid device cgroup format '{text}'")
    return text


def link(text: str) -> str:
    """`name[:alias]`."""
    if not text:
        raise Bad("empty string specified for links")
    if text.count(":") > 1:
        raise Bad(f"bad format for links: {text}")
    return text


SYSCTLS = frozenset(f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"))


def sysctl(text: str) -> str:
    name, found, _ = text.partition("=")
    if not found or not (name in SYSCTLS or name.startswith(("net.", "fs.mqueue."))):
        raise Bad(f"sysctl '{text}' is not allowed")
    return text


def gpus(text: str) -> dict[str, Any]:
    """`all`, a number, or `device=0,driver=x,capabilities=y,options=a=b`."""
    if not text:
        raise Bad("EOF")
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    seen: set[str] = set()
    for field in fields_of(text):
        key, found, value = field.partition("=")
        key, value = (key, value) if found else ("count", key)
        if key in seen:
            raise Bad(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = _gpu_count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = {name: option for name, _, option in (part.partition("=") for part in value.split(","))}
        else:
            raise Bad(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    return request


def _gpu_count(text: str) -> int:
    if text == "all":
        return -1
    try:
        return parse_int(text)
    except Bad:
        raise Bad(f'invalid count ({text}): value must be either "all" or an integer: invalid syntax') from None


LONG_NETWORK = re.compile(r"\w+=\w+(,\w+=\w+)*")


def network(text: str) -> dict[str, Any]:
    """A name, or `name=,alias=,ip=,ip6=,mac-address=,link-local-ip=,driver-opt=,gw-priority=`; as `Target` and fields of an endpoint."""
    if not LONG_NETWORK.search(text):
        return {"Target": text}
    found: dict[str, Any] = {}
    for field in fields_of(text):
        key, equal, value = field.partition("=")
        if not equal or not key:
            raise Bad(f"invalid field {field}")
        key, value = key.strip().lower(), value.strip()
        if key in _NETWORK_LISTS:
            found.setdefault(_NETWORK_LISTS[key], []).append(value)
        elif key in _NETWORK_FIELDS:
            found[_NETWORK_FIELDS[key]] = value
        elif key == "driver-opt":
            name, equal, value = value.partition("=")
            if not equal:
                raise Bad("invalid key value pair format in driver options")
            found.setdefault("DriverOpts", {})[name.strip().lower()] = value.strip()
        elif key == "gw-priority":
            try:
                found["GwPriority"] = parse_int(value)
            except Bad as error:
                why = str(error).rpartition(": ")[2]
                raise Bad(f"invalid gw-priority ({value}): value must be an integer: {why}") from None
        else:
            raise Bad(f"invalid field key {key}")
    if not found.get("Target"):
        raise Bad("network name/id is not specified")
    return found


_NETWORK_LISTS = {"alias": "Aliases", "link-local-ip": "LinkLocalIPs"}
_NETWORK_FIELDS = {"name": "Target", "ip": "IPv4Address", "ip6": "IPv6Address", "mac-address": "MacAddress"}


# ports


def published(texts: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, str]]]]:
    """`[ip:][host:]port[/protocol]`, with ranges, or `published=,target=,protocol=` -> (ExposedPorts, PortBindings). Raises Bad."""
    exposed: dict[str, dict[str, Any]] = {}
    bound: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        for port, binding in _bindings(_standard(text)):
            exposed[port] = {}
            bound.setdefault(port, []).append(binding)
    return exposed, bound


def _standard(text: str) -> str:
    if "=" not in text:
        return text
    given = {"protocol": "tcp", "published": "", "target": ""}
    for field in text.split(","):
        key, found, value = field.partition("=")
        if not found:
            raise Bad(f"invalid publish opts format (should be name=value but got '{field}')")
        given[key] = value
    return f"{given['published']}:{given['target']}/{given['protocol']}"


def _bindings(text: str) -> list[tuple[str, dict[str, str]]]:
    spec, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    parts = spec.split(":")
    target, host = parts[-1], parts[-2] if len(parts) > 1 else ""
    address = ":".join(parts[:-2])
    if address.startswith("["):
        address = address.strip("[]")
    if address:
        check_address(address, f"invalid IP address: {address}")
    if not target:
        raise Bad(f"no port specified: {text}<empty>")
    first, last = port_range(target, "containerPort")
    begin, end = port_range(host, "hostPort") if host else (0, 0)
    if host and last - first != end - begin and last != first:
        raise Bad(f"invalid ranges specified for container and host Ports: {target} and {host}")
    if protocol not in ("tcp", "udp", "sctp"):
        raise Bad(f"invalid proto: {text.partition('/')[2]}")
    if host and last == first and begin != end:
        return [(f"{first}/{protocol}", {"HostIp": address, "HostPort": f"{begin}-{end}"})]
    return [(f"{first + n}/{protocol}", {"HostIp": address, "HostPort": str(begin + n) if host else ""}) for n in range(last - first + 1)]


def exposed(text: str) -> list[str]:
    """`80`, `53/udp`, `100-102` -> ports. Raises Bad."""
    if ":" in text:
        raise Bad(f"invalid port format for --expose: {text}")
    span, _, protocol = text.partition("/")
    low, dash, high = span.partition("-")
    try:
        begin = parse_uint(low, 16)
        end = parse_uint(high, 16) if dash else begin
        if end < begin:
            raise Bad(f"invalid range specified for port: {span}")
    except Bad as error:
        raise Bad(f"invalid range format for --expose: {text}, error: {error}") from None
    return [f"{number}/{protocol or 'tcp'}" for number in range(begin, end + 1)]


# the rest


def device(text: str) -> list[dict[str, str]]:
    """`host[:container][:rwm]`, `host*` for several. Raises Bad."""
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise Bad(f"bad format for path: {text}")
    source, target, mode = parts[0], "", "rwm"
    if len(parts) == 3:
        target, mode = parts[1], parts[2]
        if not _is_mode(mode):
            raise Bad(f"bad mode specified: {mode}")
    elif len(parts) == 2 and _is_mode(parts[1]):
        mode = parts[1]
    elif len(parts) == 2:
        target = parts[1]
    if not (target or source).startswith("/"):
        raise Bad(f"{target or source} is not an absolute path")
    if source.endswith("*"):
        from glob import glob

        if target:
            raise Bad(f"device with * suffix can't have dst: {text}")
        return [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": mode} for path in sorted(glob(source))]
    return [{"PathOnHost": source, "PathInContainer": target or source, "CgroupPermissions": mode}]


def _is_mode(text: str) -> bool:
    return bool(text) and len(set(text)) == len(text) and set(text) <= set("rwm")


def restart(text: str) -> dict[str, Any]:
    """`on-failure[:3]`, `always`, ... Raises Bad."""
    name, found, count = text.partition(":")
    if found and not name:
        raise Bad("invalid restart policy format: no policy provided before colon")
    if found and not re.fullmatch(r"[+-]?\d+", count):
        raise Bad("invalid restart policy format: maximum retry count must be an integer")
    return {"Name": name, "MaximumRetryCount": int(count) if found else 0}


def security(texts: list[str]) -> list[str]:
    """A seccomp profile is a file here and goes to the daemon as its content. Raises Bad."""
    found = []
    for text in texts:
        key, equal, value = text.partition("=")
        if not equal and key != "no-new-privileges":
            if ":" not in text:
                raise Bad(f"Invalid --security-opt: {quoted(text)}")
            key, _, value = text.partition(":")
        if key == "seccomp" and value not in ("unconfined", "builtin"):
            text = f"seccomp={_profile(value)}"
        found.append(text)
    return found


def _profile(path: str) -> str:
    import json

    try:
        with open(path) as file:
            return json.dumps(json.load(file), separators=(",", ":"), ensure_ascii=False)
    except OSError as error:
        raise Bad(f"opening seccomp profile ({path}) failed: open {path}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise Bad(f"compacting json for seccomp profile ({path}) failed: {error}") from None


def bind(text: str) -> str:
    """A relative source is made absolute; a name stays one."""
    import os

    if not text:
        raise Bad("invalid empty volume spec")
    source, found, rest = text.partition(":")
    if found and source.startswith("."):
        source = os.path.abspath(source)
    return f"{source}{found}{rest}"
