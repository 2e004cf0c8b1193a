"""Compares an answer with the recorded one: everything must be the same but what cannot be.

Ids are not masked but bound: a recorded id stands for one of ours, the same each time, and the other way round. The same holds for version
indexes. Times must be times, addresses addresses, tokens tokens. The rules are in docs/api.md.
"""

from __future__ import annotations

import re
from typing import Any

ANY_ID = re.compile(r"(?<![0-9a-z])(?:[0-9a-f]{64}|[0-9a-z]{25})(?![0-9a-z])")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z")
CIDR = re.compile(r"10\.\d+\.\d+\.\d+/24")
TOKEN = re.compile(r"SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}")
ON_ITS_WAY = {"new", "pending", "assigned", "accepted", "preparing", "ready", "starting"}
"""States that pass too quickly to be compared one by one: real agents and Docker's allocator take them in other beats."""

MASKED: dict[str, str] = {
    "TrustRoot": "another CA",
    "CertIssuerPublicKey": "another CA",
    "CertIssuerSubject": "another CA: the same name in another string type",
    "PID": "another process",
    "Pid": "another process",
}


class Different(AssertionError):
    pass


class Bindings:
    """recorded -> ours and back, one to one."""

    def __init__(self) -> None:
        self.ours: dict[Any, Any] = {}
        self.recorded: dict[Any, Any] = {}

    def copy(self) -> Bindings:
        other = Bindings()
        other.ours, other.recorded = dict(self.ours), dict(self.recorded)
        return other

    def bind(self, recorded: Any, ours: Any, where: str) -> None:
        if self.ours.setdefault(recorded, ours) != ours or self.recorded.setdefault(ours, recorded) != recorded:
            raise Different(f"{where}: {recorded} stands for {self.ours.get(recorded)}, not for {ours}")

    def translate(self, text: str) -> str:
        """Recorded ids in a text -> ours."""
        return ANY_ID.sub(lambda m: str(self.ours.get(m[0], m[0])), text)


def same(recorded: Any, ours: Any, bound: Bindings, where: str = "$") -> None:
    """Raises Different with the first difference."""
    if isinstance(recorded, dict) and isinstance(ours, dict):
        _objects(recorded, ours, bound, where)
    elif isinstance(recorded, list) and isinstance(ours, list):
        _lists(recorded, ours, bound, where)
    elif isinstance(recorded, str) and isinstance(ours, str):
        _texts(recorded, ours, bound, where)
    elif recorded != ours or (isinstance(recorded, bool) != isinstance(ours, bool)):
        raise Different(f"{where}: recorded {recorded!r}, ours {ours!r}")


def _task_being_stopped(item: dict[str, Any]) -> dict[str, Any]:
    """A running container's exit code says nothing (the engine gives -1 while it is being stopped)."""
    container = {**item["Status"].get("ContainerStatus", {}), "ExitCode": 0}
    return {**item, "Status": {**item["Status"], "ContainerStatus": container}}


def _task_on_its_way(item: dict[str, Any]) -> dict[str, Any]:
    """A task before it runs, without what changes on the way."""
    status = {name: value for name, value in item["Status"].items() if name not in ("Message", "ContainerStatus", "Timestamp", "State")}
    return {**{name: value for name, value in item.items() if name != "NodeID"}, "Status": status}


def _objects(recorded: dict[str, Any], ours: dict[str, Any], bound: Bindings, where: str) -> None:
    if "DesiredState" in recorded and "DesiredState" in ours and {recorded["Status"]["State"], ours["Status"]["State"]} <= ON_ITS_WAY:
        recorded, ours = _task_on_its_way(recorded), _task_on_its_way(ours)
    elif "DesiredState" in recorded and {recorded["Status"]["State"], ours.get("Status", {}).get("State")} == {"running"}:
        recorded, ours = _task_being_stopped(recorded), _task_being_stopped(ours)
    if recorded.keys() != ours.keys():
        missing, more = sorted(recorded.keys() - ours.keys()), sorted(ours.keys() - recorded.keys())
        raise Different(f"{where}: recorded has {missing or 'nothing'} more, ours has {more or 'nothing'} more")
    for key, value in recorded.items():
        at = f"{where}.{key}"
        if key in MASKED:
            if (value in ("", None, 0)) != (ours[key] in ("", None, 0)):
                raise Different(f"{at}: recorded {value!r}, ours {ours[key]!r}")
        elif key == "Version" and isinstance(value, dict):
            # An index stands for the state of one object: several objects written together may share ours.
            if not isinstance(ours[key].get("Index"), int):
                raise Different(f"{at}: no index")
        else:
            same(value, ours[key], bound, at)


def _lists(recorded: list[Any], ours: list[Any], bound: Bindings, where: str) -> None:
    if len(recorded) != len(ours):
        raise Different(f"{where}: recorded has {len(recorded)}, ours {len(ours)}: {_short(recorded)} / {_short(ours)}")
    if recorded and all(isinstance(item, dict) and ("ServiceID" in item or "Spec" in item) for item in (*recorded, *ours)):
        _match(recorded, ours, bound, where)
        return
    for index, (a, b) in enumerate(zip(recorded, ours, strict=True)):
        same(a, b, bound, f"{where}[{index}]")


def _match(recorded: list[Any], ours: list[Any], bound: Bindings, where: str) -> None:
    """Lists of objects come in no order: each recorded one must have its own. Bound ids decide, then the first that fits."""
    left = list(ours)
    for item in sorted(recorded, key=lambda i: (bound.ours.get(i.get("ID")) is None, str(i.get("CreatedAt", "")))):
        reasons = []
        for candidate in left:
            trial = bound.copy()
            try:
                same(item, candidate, trial, f"{where}[{item.get('ID', '')[:6]}]")
            except Different as error:
                reasons.append(str(error))
                continue
            bound.ours, bound.recorded = trial.ours, trial.recorded
            left.remove(candidate)
            break
        else:
            raise Different("; or ".join(dict.fromkeys(reasons)) or f"{where}: too few")


def _short(items: list[Any]) -> str:
    shown = [
        f"{i.get('Slot', '')}:{i['Status']['State']}/{i['DesiredState']}" if isinstance(i, dict) and "DesiredState" in i else "."
        for i in items
    ]
    return ",".join(shown[:12])


def _texts(recorded: str, ours: str, bound: Bindings, where: str) -> None:
    if recorded == ours:
        return
    for form in (TIME, CIDR, TOKEN):
        if form.fullmatch(recorded) and form.fullmatch(ours):
            return
    if ANY_ID.sub("*", recorded) != ANY_ID.sub("*", ours):
        raise Different(f"{where}: recorded {recorded!r}, ours {ours!r}")
    for theirs, mine in zip(ANY_ID.findall(recorded), ANY_ID.findall(ours), strict=True):
        bound.bind(theirs, mine, where)
