"""Members of a body in any case, as Go reads them: docker-py says `{"Mode": {"global": {}}}`."""

from __future__ import annotations

import msgspec
import pytest

from skep.api.body import convert
from skep.api.spelling import spelled


class Inner(msgspec.Struct, rename="pascal"):
    replicas: int = 0


class Outer(msgspec.Struct, rename="pascal"):
    name: str = ""
    mode: Inner | None = None
    many: list[Inner] = []
    labels: dict[str, str] = {}
    by_name: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"Name": "a"}, Outer("a")),
        ({"name": "a", "NAME": "b"}, Outer("b")),
        ({"mode": {"rEPLICAS": 3}}, Outer(mode=Inner(3))),
        ({"MANY": [{"replicas": 1}, {"Replicas": 2}]}, Outer(many=[Inner(1), Inner(2)])),
        ({"labels": {"Name": "x", "name": "y"}}, Outer(labels={"Name": "x", "name": "y"})),
        ({"byname": {"Replicas": {"replicas": 4}}}, Outer(by_name={"Replicas": Inner(4)})),
        ({"unknown": {"name": 1}}, Outer()),
    ],
)
def test_any_case_is_taken(given: object, meant: Outer) -> None:
    assert convert(given, Outer) == meant


@pytest.mark.parametrize("given", [[], "x", 1, None, [[1]]])
def test_what_has_no_members_stays(given: object) -> None:
    assert spelled(given, Outer) is given
