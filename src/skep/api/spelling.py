"""Names of JSON members in any case, as Go's decoder takes them: docker-py's `ServiceMode("global")` says `{"global": {}}`, and a mode that
nobody recognised would be taken for no mode at all.

What is a name of the user's own (a label, a network's name) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from msgspec import inspect

Spell = Callable[[Any], Any]


def spelled(value: Any, kind: Any) -> Any:
    """The same JSON with its members named as in the struct `kind`; of two that differ in case alone, the last counts."""
    spell = _of_kind(kind)
    return value if spell is None else spell(value)


@cache
def _of_kind(kind: Any) -> Spell | None:
    return _of(inspect.type_info(kind))


def _of(kind: inspect.Type) -> Spell | None:
    """None where nothing below is a struct."""
    if isinstance(kind, inspect.StructType):
        return _of_struct(kind)
    if isinstance(kind, inspect.UnionType):
        return next((spell for one in kind.types if (spell := _of(one)) is not None), None)
    if isinstance(kind, inspect.CollectionType) and (item := _of(kind.item_type)) is not None:
        return lambda value: [item(one) for one in value] if isinstance(value, list) else value
    if isinstance(kind, inspect.DictType) and (below := _of(kind.value_type)) is not None:
        return lambda value: {key: below(one) for key, one in value.items()} if isinstance(value, dict) else value
    return None


def _of_struct(kind: inspect.StructType) -> Spell:
    named: dict[str, Spell | None] = {field.encode_name: _of(field.type) for field in kind.fields}
    lower: dict[str, str] = {name.lower(): name for name in named}

    def spell(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        out: dict[Any, Any] = {}
        for key, one in value.items():
            name = key if key in named else lower.get(str(key).lower(), str(key))
            below = named.get(name)
            out[name] = one if below is None else below(one)
        return out

    return spell
