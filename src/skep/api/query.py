"""Query parameters as Docker reads them: two kinds of booleans, versions, times, and its sentences for what it cannot read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from skep.clock import SECOND
from skep.errors import Invalid

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_SECONDS = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9})\d*)?")
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9})\d*)?(Z|z|[+-]\d\d:\d\d)?")


def loose_bool(query: Mapping[str, str], name: str) -> bool:
    """Containers' booleans: everything but ``, 0, no, false, none is true."""
    return query.get(name, "").strip().lower() not in ("", "0", "no", "false", "none")


def go_bool(query: Mapping[str, str], name: str, *, reason: bool = True) -> bool:
    """The swarm's booleans: what Go's strconv.ParseBool takes, absent = false. Raises Invalid."""
    text = query.get(name, "")
    if not text or text in _FALSE:
        return False
    if text in _TRUE:
        return True
    more = f': strconv.ParseBool: parsing "{text}": invalid syntax' if reason else ""
    raise Invalid(f"invalid value for {name}: {text}{more}")


def version(query: Mapping[str, str], kind: str) -> int:
    """`version` of an update, an unsigned 64-bit number. Raises Invalid with Docker's sentence for this kind of object."""
    text = query.get("version", "")
    if not re.fullmatch(r"[0-9]+", text):
        raise Invalid(f"invalid {kind} version '{text}': strconv.ParseUint: parsing \"{text}\": invalid syntax")
    number = int(text) if len(text) < 32 else 1 << 64
    if number >= 1 << 64:
        raise Invalid(f"invalid {kind} version '{text}': strconv.ParseUint: parsing \"{text}\": value out of range")
    return number


def when(query: Mapping[str, str], name: str) -> int:
    """A time: unix seconds with optional fraction, or RFC 3339; ns since 1970, absent = 0."""
    text = query.get(name, "")
    if not text:
        return 0
    if match := _SECONDS.fullmatch(text):
        seconds, fraction = int(match[1]), int((match[2] or "").ljust(9, "0"))
        return max(0, seconds * SECOND + (fraction if seconds >= 0 else -fraction))
    if match := _RFC3339.fullmatch(text):
        try:
            moment = datetime.fromisoformat(match[1].upper() + (match[3] or "Z").upper().replace("Z", "+00:00"))
        except ValueError as error:
            raise Invalid(f"invalid value for {name}: {text}: {error}") from None
        return int(moment.timestamp()) * SECOND + int((match[2] or "").ljust(9, "0"))
    raise Invalid(f'invalid value for "{name}": "{text}": give unix seconds (1700000000.5) or an RFC 3339 time')


def tail(query: Mapping[str, str]) -> int:
    """Lines from the end; -1 = all, which is also what Docker takes a word for."""
    text = query.get("tail", "")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def number(query: Mapping[str, str], name: str, default: int = 0) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", text):
        raise Invalid(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}


def cutoff(values: Sequence[str], now: int) -> int:
    """The filter `until` of the prune calls: a duration before now (`24h`, `1h30m`), or a time; ns since 1970, absent = 0.

    Raises Invalid, also where it is given twice.
    """
    if not values:
        return 0
    if len(values) > 1:
        raise Invalid("more than one until filter specified")
    text = values[0]
    if re.fullmatch(rf"(?:{_DURATION.pattern})+", text):
        parts = (re.fullmatch(r"([0-9.]+)(\D+)", part) for part in _DURATION.findall(text))
        return max(1, now - round(sum(float(part[1]) * _UNITS[part[2]] for part in parts if part is not None)))
    return max(1, when({"until": text}, "until"))
