"""`--change` of `docker import`: the instructions of a Dockerfile that only touch an image's config. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from skep.clock import SECOND
from skep.errors import Invalid

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)


def apply(changes: Sequence[str]) -> dict[str, Any]:
    """The `config` of an image with these instructions. Raises Invalid with the instruction that is none."""
    config: dict[str, Any] = {}
    for change in changes:
        for line in re.sub(r"\\\n", "", change).splitlines():
            if not (text := line.strip()) or text.startswith("#"):
                continue
            word, _, rest = text.partition(" ")
            known = _INSTRUCTIONS.get(word.upper())
            if known is None:
                raise Invalid(
                    f"{word.lower()} is not a valid change command" if word.upper() in _OTHERS else f"unknown instruction: {word}"
                )
            if not rest.strip():
                raise Invalid(f"{word.upper()} requires at least one argument")
            known(config, rest.strip())
    return config


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        raise Invalid(f"unexpected end of statement while looking for matching quote: {text}") from None


def _array(text: str) -> list[str] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _command(text: str) -> list[str]:
    return _array(text) or ["/bin/sh", "-c", text]


def _pairs(text: str, what: str) -> list[tuple[str, str]]:
    words = _words(text)
    if "=" not in words[0]:
        name, _, value = text.partition(" ")
        if not value:
            raise Invalid(f"{what} must have two arguments")
        return [(name, value.strip())]
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Invalid(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value")
        found.append((name, value))
    return found


def _env(config: dict[str, Any], text: str) -> None:
    held = dict(item.partition("=")[::2] for item in config.get("Env", []))
    config["Env"] = [f"{name}={value}" for name, value in {**held, **dict(_pairs(text, "ENV"))}.items()]


def _label(config: dict[str, Any], text: str) -> None:
    config.setdefault("Labels", {}).update(_pairs(text, "LABEL"))


def _cmd(config: dict[str, Any], text: str) -> None:
    config["Cmd"] = _command(text)


def _entrypoint(config: dict[str, Any], text: str) -> None:
    config["Entrypoint"] = _command(text)


def _expose(config: dict[str, Any], text: str) -> None:
    for word in _words(text):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not 0 < first <= last < 65536:
            raise Invalid(f"invalid containerPort: {word}")
        for port in range(first, last + 1):
            config.setdefault("ExposedPorts", {})[f"{port}/{(match[3] or 'tcp').lower()}"] = {}


def _volume(config: dict[str, Any], text: str) -> None:
    for path in _array(text) or _words(text):
        config.setdefault("Volumes", {})[path] = {}


def _workdir(config: dict[str, Any], text: str) -> None:
    path = _words(text)[0]
    config["WorkingDir"] = path if path.startswith("/") else f"{config.get('WorkingDir', '').rstrip('/')}/{path}"


def _on_build(config: dict[str, Any], text: str) -> None:
    config.setdefault("OnBuild", []).append(text)


def _text(key: str) -> Callable[[dict[str, Any], str], None]:
    def put(config: dict[str, Any], text: str) -> None:
        words = _words(text)
        if len(words) != 1:
            raise Invalid(f"{key.upper()} requires exactly one argument")
        config[key] = words[0]

    return put


def _healthcheck(config: dict[str, Any], text: str) -> None:
    check: dict[str, Any] = {}
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", text):
        key, value, text = match[1], match[2], text[match.end() :]
        field = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval"}.get(key)
        if field:
            check[field] = _duration(value)
        elif key == "retries" and value.isdigit():
            check["Retries"] = int(value)
        else:
            raise Invalid(f"unknown flag: {key}")
    kind, _, rest = text.partition(" ")
    if kind.upper() == "NONE" and not rest:
        check = {"Test": ["NONE"]}
    elif kind.upper() == "CMD" and rest.strip():
        array = _array(rest)
        check["Test"] = ["CMD", *array] if array else ["CMD-SHELL", rest.strip()]
    else:
        raise Invalid(f"unknown type {kind!r} in HEALTHCHECK (try CMD)")
    config["Healthcheck"] = check


def _duration(text: str) -> int:
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise Invalid(f'time: invalid duration "{text}"')
    return int(sum(float(number) * _UNITS[unit] for number, unit in found))


_INSTRUCTIONS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _text("StopSignal"),
    "USER": _text("User"),
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
_OTHERS = {"FROM", "RUN", "COPY", "ADD", "ARG", "MAINTAINER", "SHELL"}
