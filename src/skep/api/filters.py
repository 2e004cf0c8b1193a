"""Docker's `filters` parameter: both encodings, its errors, and the ways a value matches.

Values under one key are or-ed (labels: and-ed), keys are and-ed. Clients send `{"label":{"a=b":true}}`, scripts `{"label":["a=b"]}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from skep.errors import Invalid

MOST_VALUES = 1000


class Filters:
    """`values[key]` in the order given; absent key = no restriction."""

    def __init__(self, values: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.values = dict(values or {})

    def get(self, key: str) -> tuple[str, ...]:
        return self.values.get(key, ())

    def __bool__(self) -> bool:
        return bool(self.values)

    def exact(self, key: str, *candidates: str) -> bool:
        wanted = self.get(key)
        return not wanted or any(c in wanted for c in candidates)

    def prefix(self, key: str, *candidates: str) -> bool:
        wanted = self.get(key)
        return not wanted or any(c.startswith(w) for c in candidates for w in wanted)

    def matches(self, key: str, *candidates: str) -> bool:
        """Equal, or a regular expression found in it (names of containers, networks, volumes)."""
        wanted = self.get(key)
        return not wanted or any(_found(w, c) for c in candidates for w in wanted)

    def labels(self, key: str, labels: Mapping[str, str] | None) -> bool:
        """All of `key` or `key=value`."""
        return all(has_label(labels or {}, wanted) for wanted in self.get(key))

    def truth(self, key: str) -> bool | None:
        """One yes or no: `1 true`, `0 false`; None when not asked."""
        wanted = self.get(key)
        if not wanted:
            return None
        if len(set(wanted)) == 1 and wanted[0] in ("1", "true"):
            return True
        if len(set(wanted)) == 1 and wanted[0] in ("0", "false"):
            return False
        raise Invalid(f"invalid filter '{key}={' '.join(wanted)}'")


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    name, given, value = wanted.partition("=")
    return name in labels and (not given or labels[name] == value)


def swarm_labels(labels: Mapping[str, str] | None, wanted: Iterable[str]) -> bool:
    """The cluster store's way: as `has_label`, but `key=` (empty value) asks for the key alone."""
    held = labels or {}
    for item in wanted:
        name, _, value = item.partition("=")
        if name not in held or (value and held[name] != value):
            return False
    return True


def _found(wanted: str, candidate: str) -> bool:
    if wanted == candidate:
        return True
    if len(wanted) > 256:
        return False
    try:
        return re.search(wanted, candidate) is not None
    except re.error:
        return False


def parse(text: str, accepted: frozenset[str] | None) -> Filters:
    """`accepted` None takes any key (events). Raises Invalid with Docker's sentences."""
    if not text:
        return Filters()
    try:
        decoded = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid("invalid filter") from None
    if decoded is None:
        return Filters()
    if not isinstance(decoded, dict):
        raise Invalid("invalid filter")
    values: dict[str, tuple[str, ...]] = {}
    for key, given in decoded.items():
        if given is None:
            continue
        if isinstance(given, dict):
            items = [name for name, on in given.items() if on]
        elif isinstance(given, list):
            items = list(given)
        else:
            raise Invalid("invalid filter")
        if not all(isinstance(item, str) for item in items) or len(items) > MOST_VALUES:
            raise Invalid("invalid filter")
        if items:
            values[key] = tuple(items)
        if accepted is not None and key not in accepted:
            raise Invalid(f"invalid filter '{key}'")
    return Filters(values)
