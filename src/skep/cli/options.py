"""What the flags of `service create` and `service update` are made of: networks, secrets, and the rest, as the API wants
them. Each parser takes the flag's text and raises Bad in Docker's words.
"""

from __future__ import annotations

import re

from skep.cli.flags import quoted
from skep.cli.words import Bad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

LONG = re.compile(r"\w+=\w+(,\w+=\w+)*")


def fields_of(text: str) -> list[str]:
    """One line of comma-separated values, quoted where they must be."""
    if '"' not in text:
        return text.split(",")
    import csv

    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration) as error:
        raise Bad(f"parse error on line 1: {error}") from None


def key_values(texts: Iterable[str]) -> dict[str, str]:
    """`["a=b", "c"]` -> `{"a": "b", "c": ""}`."""
    found = {}
    for text in texts:
        key, _, value = text.partition("=")
        found[key] = value
    return found


# what a service refers to


def network(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not LONG.search(text):
        return {"Target": text}
    for field in fields_of(text):
        key, equal, value = field.partition("=")
        if not equal or not key:
            raise Bad(f"invalid field {field}")
        key, value = key.strip().lower(), value.strip()
        if key == "name":
            found["Target"] = value
        elif key == "alias":
            found.setdefault("Aliases", []).append(value)
        elif key == "driver-opt":
            name, equal, value = value.partition("=")
            if not equal:
                raise Bad("invalid key value pair format in driver options")
            found.setdefault("DriverOpts", {})[name.strip().lower()] = value.strip()
        else:
            raise Bad(f"invalid field key {key}")
    if not found.get("Target"):
        raise Bad("network name/id is not specified")
    return found


def secret(text: str) -> dict[str, Any]:
    return _file_reference(text, "Secret")


def config(text: str) -> dict[str, Any]:
    return _file_reference(text, "Config")


def _file_reference(text: str, kind: str) -> dict[str, Any]:
    file: dict[str, Any] = {"Name": "", "UID": "0", "GID": "0", "Mode": 0o444}
    name = ""
    fields = fields_of(text)
    if len(fields) == 1 and "=" not in fields[0]:
        name = fields[0]
        fields = []
    for field in fields:
        key, equal, value = field.partition("=")
        if not equal:
            raise Bad(f"invalid field '{field}' must be a key=value pair")
        match key.lower():
            case "source" | "src":
                name = value
            case "target":
                file["Name"] = value
            case "uid":
                file["UID"] = value
            case "gid":
                file["GID"] = value
            case "mode":
                try:
                    file["Mode"] = int(value, 8) if value.startswith("0") and value[1:2] not in ("x", "b", "o") else int(value, 0)
                except ValueError:
                    raise Bad(f'invalid mode specified: strconv.ParseUint: parsing "{value}": invalid syntax') from None
            case _:
                raise Bad(f"invalid field in {kind.lower()} request: {key.lower()}")
    if not name:
        raise Bad("source is required")
    file["Name"] = file["Name"] or name
    return {"File": file, f"{kind}ID": "", f"{kind}Name": name}


# smaller things

ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)


def ulimit(text: str) -> dict[str, Any]:
    name, equal, values = text.partition("=")
    if not equal:
        raise Bad(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise Bad(f"invalid ulimit type: {name}")
    soft_text, colon, hard_text = values.partition(":")
    try:
        soft = int(soft_text)
        hard = int(hard_text) if colon else soft
    except ValueError:
        bad = soft_text if not re.fullmatch(r"[+-]?\d+", soft_text) else hard_text
        raise Bad(f'strconv.ParseInt: parsing "{bad}": invalid syntax') from None
    if hard != -1 and (soft == -1 or soft > hard):
        raise Bad(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def preference(text: str) -> dict[str, Any]:
    strategy, equal, descriptor = text.partition("=")
    if not equal:
        raise Bad('placement preference must be of the format "<strategy>=<arg>"')
    if strategy != "spread":
        raise Bad(f"unsupported placement preference {strategy} (only spread is supported)")
    return {"Spread": {"SpreadDescriptor": descriptor}}


def credential_spec(text: str) -> dict[str, Any]:
    found = {"Config": "", "File": "", "Registry": ""}
    if not text:
        return found
    kind, colon, value = text.partition("://")
    if not colon or kind not in ("config", "file", "registry"):
        raise Bad('invalid credential spec: value must be prefixed with "config://", "file://", or "registry://"')
    found[kind.title()] = value
    return found


def host(text: str) -> str:
    """`host:ip` -> as swarm keeps it, `ip host`."""
    name, found, address = text.partition("=") if "=" in text else text.partition(":")
    if not found or not name:
        raise Bad(f"bad format for add-host: {quoted(text)}")
    if address != "host-gateway":
        if address.startswith("[") and address.endswith("]"):
            address = address[1:-1]
        check_address(address, f"invalid IP address in add-host: {quoted(address)}")
    return f"{address} {name}"


def check_address(text: str, message: str) -> None:
    from ipaddress import ip_address

    try:
        ip_address(text)
    except ValueError:
        raise Bad(message) from None


def dns_server(text: str) -> str:
    text = text.strip()
    check_address(text, f"IP address is not correctly formatted: {text}")
    return text


def dns_search(text: str) -> str:
    text = text.strip()
    if text == ".":
        return text
    if len(text) > 255 or not re.fullmatch(
        r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?", text
    ):
        raise Bad(f"{text} is not a valid domain")
    return text


def environment(text: str) -> str:
    if not text.partition("=")[0]:
        raise Bad(f"invalid environment variable: {text}")
    return text


def with_values(lines: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """A bare name takes the value it has here; without one it stays bare."""
    return [line if "=" in line or line not in environ else f"{line}={environ[line]}" for line in lines]


def label(text: str) -> str:
    if not text.partition("=")[0]:
        raise Bad(f"invalid label '{text}': empty name")
    return text


def generic_resource(text: str) -> str:
    kind, equal, value = text.partition("=")
    if not equal or not kind or not value:
        raise Bad(f"invalid generic-resource format `{text}` expected `name=value`")
    return text


def generic_resources(texts: Iterable[str]) -> list[dict[str, Any]]:
    found = []
    for text in texts:
        kind, _, value = text.partition("=")
        if not value.isdigit():
            raise Bad(
                f"invalid generic-resource request `{kind}={value}`, Named Generic Resources is not supported for service create or update"
            )
        found.append({"DiscreteResourceSpec": {"Kind": kind, "Value": int(value)}})
    return found


def sysctl(text: str) -> str:
    return text


def environment_file(path: str, environ: Mapping[str, str]) -> list[str]:
    """Lines `K=V`, or `K` where it has a value here; blank ones and comments are left out."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise Bad(f"open {path}: {(error.strerror or '').lower()}") from None
    found = []
    for number, raw in enumerate(lines, 1):
        try:
            line = raw.decode().lstrip("\ufeff" if number == 1 else "").rstrip("\r")
        except UnicodeDecodeError:
            raise Bad(f"invalid env file ({path}): invalid utf8 bytes at line {number}: {list(raw)}") from None
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        name, equal, _ = line.partition("=")
        if not name:
            raise Bad(f"invalid env file ({path}): no variable name on line '{line}'")
        if re.search(r"\s", name):
            raise Bad(f"invalid env file ({path}): variable '{name}' contains whitespaces")
        if equal:
            found.append(line)
        elif name in environ:
            found.append(f"{name}={environ[name]}")
    return found


def capabilities(names: Iterable[str]) -> set[str]:
    """`net_admin` -> `CAP_NET_ADMIN`; ALL and RESET stay."""
    found = set()
    for name in names:
        name = name.strip().upper()
        found.add(name if name in ("ALL", "RESET") or name.startswith("CAP_") else f"CAP_{name}")
    return found
