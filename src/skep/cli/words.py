"""Numbers as people write and read them, the way Docker's command line does: durations, sizes, CPUs, times, order of names.

Go's own forms (`1h30m`, `2160h0m0s`) are read and written by hand: durations are integers of nanoseconds, sizes integers of bytes.
"""

from __future__ import annotations

import re

SECOND = 1_000_000_000
_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "μs": 1000, "ms": 1_000_000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_PART = re.compile(r"(\d*)(?:\.(\d*))?([a-zµμ]*)")


class Bad(ValueError):
    """Text that cannot be read, in Go's words."""


def parse_duration(text: str) -> int:
    """Go's time.ParseDuration. Raises Bad."""
    rest, sign = (text[1:], -1 if text[0] == "-" else 1) if text[:1] in ("+", "-") else (text, 1)
    if rest == "0":
        return 0
    if not rest:
        raise Bad(f'time: invalid duration "{text}"')
    total = 0
    while rest:
        found = _PART.match(rest)
        whole, part, unit = found.groups() if found else ("", None, "")
        if not whole and not part:
            raise Bad(f'time: invalid duration "{text}"')
        if not unit:
            raise Bad(f'time: missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise Bad(f'time: unknown unit "{unit}" in duration "{text}"')
        total += int(whole or 0) * _UNITS[unit] + (int(part) * _UNITS[unit] // 10 ** len(part) if part else 0)
        rest = rest[found.end() :] if found else ""
    return sign * total


def go_duration(ns: int) -> str:
    """Go's Duration.String(): `1h30m0s`, `1.5s`, `100ms`, `0s`."""
    if ns == 0:
        return "0s"
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns < SECOND:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if ns >= size:
                return sign + _decimal(ns, size) + unit
    hours, rest = divmod(ns, 3600 * SECOND)
    minutes, rest = divmod(rest, 60 * SECOND)
    text = _decimal(rest, SECOND) + "s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = str(part).rjust(len(str(unit)) - 1, "0").rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def human_duration(ns: int) -> str:
    """docker/go-units: `Less than a second`, `About a minute`, `3 days`."""
    seconds = int(ns / SECOND)
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(ns / SECOND / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for limit, size, name in ((24 * 14, 24, "days"), (24 * 60, 24 * 7, "weeks"), (24 * 365 * 2, 24 * 30, "months")):
        if hours < limit:
            return f"{hours // size} {name}"
    return f"{int(ns / SECOND / 3600) // 24 // 365} years"


def parse_time(text: str) -> int:
    """RFC 3339 with nanoseconds -> ns since 1970; 0 for an unset time."""
    found = re.match(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)?$", text or "")
    if not found:
        return 0
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    if year < 1970:
        return 0
    a = (14 - month) // 12
    y, m = year + 4800 - a, month + 12 * a - 3
    days = day + (153 * m + 2) // 5 + 365 * y + y // 4 - y // 100 + y // 400 - 32045 - 2440588
    seconds = days * 86400 + hour * 3600 + minute * 60 + second
    zone = found.group(8)
    if zone and zone != "Z":
        seconds -= (1 if zone[0] == "+" else -1) * (int(zone[1:3]) * 3600 + int(zone[4:6]) * 60)
    return seconds * SECOND + int((found.group(7) or "0").ljust(9, "0")[:9])


def ago(now: int, text: str) -> str:
    """`5 seconds ago`; "" for a time that is not set."""
    then = parse_time(text)
    return f"{human_duration(now - then)} ago" if then else ""


_BINARY = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def parse_bytes(text: str) -> int:
    """docker/go-units RAMInBytes: `64M`, `1.5g`, `4MiB`, `512`. Raises Bad."""
    found = re.fullmatch(r"(\d+(?:\.\d+)*) ?([kKmMgGtTpP])?[iI]?[bB]?", text)
    if not found:
        raise Bad(f"invalid size: '{text}'")
    try:
        size = float(found.group(1))
    except ValueError:
        raise Bad(f"invalid size: '{text}'") from None
    return int(size * _BINARY[(found.group(2) or "").lower()])


def human_size(size: float) -> str:
    """`64MiB`, `23.54GiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.4g}{units[0]}"


def decimal_size(size: float, digits: int = 3) -> str:
    """`12.3MB`."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.{digits}g}{units[0]}"


def parse_cpus(text: str) -> int:
    """`0.5` -> nano CPUs. Raises Bad."""
    found = re.fullmatch(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d{1,2}))?", text)
    if not found or not (found.group(2) or found.group(3)):
        raise Bad(f"failed to parse {text} as a rational number")
    sign, whole, part, power = found.groups()
    part = part or ""
    digits, shift = int((whole or "") + part or "0"), 9 - len(part) + int(power or 0)
    if shift < 0 and digits % 10**-shift:
        raise Bad("value is too precise")
    return (-1 if sign == "-" else 1) * (digits * int(10**shift) if shift >= 0 else digits // int(10**-shift))


def parse_uint(text: str, bits: int = 64) -> int:
    """Go's strconv.ParseUint with base 0 but for its prefixes. Raises Bad."""
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise Bad(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 1 << bits:
        raise Bad(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def parse_int(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise Bad(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def parse_float(text: str) -> float:
    try:
        value = float(text)
        return int(value) if value.is_integer() else value
    except ValueError:
        raise Bad(f'strconv.ParseFloat: parsing "{text}": invalid syntax') from None


def parse_bool(text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise Bad(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts `web2` before `web10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", text)]


def shorten(text: str, length: int) -> str:
    """Cut with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def title(text: str) -> str:
    """Docker's PrettyPrint: the first letter in upper case."""
    return text[:1].upper() + text[1:]


def shell_words(text: str) -> list[str]:
    """As a shell would split it."""
    import shlex

    try:
        return shlex.split(text)
    except ValueError:
        raise Bad("EOF found when expecting closing quote") from None
