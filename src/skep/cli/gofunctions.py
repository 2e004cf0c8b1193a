"""The functions of Docker's templates, and how values are shown in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from skep.cli.shell import Failed

NO_VALUE = object()
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")


class BadTemplate(Failed):
    """The template cannot be read or carried out; the text says why."""

    def __init__(self, why: str) -> None:
        super().__init__(f"template parsing error: template: :1: {why}")


def truth(value: Any) -> bool:
    return value is not NO_VALUE and bool(value)


def text_of(value: Any) -> str:
    """As Go's fmt.Print shows it."""
    if value is NO_VALUE or value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{text_of(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(text_of(item) for item in value) + "]"
    return str(value)


class Headers(dict[str, Any]):
    """Of a table's columns."""

    methods: Mapping[str, Callable[[str], str]] = {}
    """What a template calls with one argument (`.Label "key"`); no part of the JSON."""


class Row(Headers):
    """A table's row. As JSON it is written the way Go's encoder does by itself, with `<`, `>` and `&` escaped; Docker's `json` function
    does not escape."""


def to_json(value: Any) -> str:
    text = json.dumps(None if value is NO_VALUE else value, separators=(",", ":"), ensure_ascii=False)
    if isinstance(value, Row):
        text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text


def compare(name: str, values: list[Any]) -> bool:
    if len(values) < 2:
        raise BadTemplate(f"wrong number of args for {name}: want at least 2 got {len(values)}")
    first, second = values[0], values[1]
    if name == "eq":
        return any(first == other for other in values[1:])
    if name == "ne":
        return bool(first != second)
    try:
        return bool({"lt": first < second, "le": first <= second, "gt": first > second, "ge": first >= second}[name])
    except TypeError:
        raise BadTemplate(f"error calling {name}: incompatible types for comparison") from None


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key, "")
        else:
            try:
                value = value[key]
            except (TypeError, IndexError):
                raise BadTemplate(f"error calling index: index out of range: {text_of(key)}") from None
    return value


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        flags, verb = match.group(1), match.group(2)
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        if verb == "q":
            return json.dumps(text_of(value), ensure_ascii=False)
        if verb in "vs":
            return f"%{flags}s" % text_of(value)
        try:
            return str(f"%{flags}{verb}" % value)
        except TypeError:
            return f"%!{verb}({text_of(value)})"

    return re.sub(r"%([-+ 0#]*\d*(?:\.\d+)?)([a-zA-Z%])", one, form)


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _pick(values: list[Any], wanted: bool) -> Any:
    return next((value for value in values if truth(value) is wanted), values[-1])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": to_json,
    "split": lambda text, by: text.split(by) if by else list(text),
    "join": lambda values, by: by.join(text_of(value) for value in values or ()),
    "title": lambda text: re.sub(r"(^|\s)(\w)", lambda m: m.group(1) + m.group(2).upper(), text),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "truncate": _truncate,
    "println": lambda *values: " ".join(text_of(value) for value in values) + "\n",
    "print": lambda *values: "".join(text_of(value) for value in values),
    "printf": _printf,
    "len": lambda value: len(value or ()),
    "index": _index,
    "slice": lambda value, *at: value[slice(*at)] if at else value,
    "and": lambda *values: _pick(list(values), False),
    "or": lambda *values: _pick(list(values), True),
    "not": lambda value: not truth(value),
    "html": lambda text: text_of(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    "urlquery": lambda text: text_of(text),
}
