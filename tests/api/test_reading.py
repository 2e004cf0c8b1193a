"""What is read of a request: JSON, query parameters, filters; and times as they are written."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.api.body import convert, read_json, without_nulls
from skep.api.filters import Filters, parse, swarm_labels
from skep.api.gojson import syntax_error
from skep.api.query import go_bool, loose_bool, tail, version, when
from skep.api.streams import KeyWatch, detach_keys, frame, log_details
from skep.api.wire.ageing import as_of
from skep.api.wire.canonical import check_numbers
from skep.api.wire.images import progress_line, split_reference, tagged
from skep.api.wire.times import ago, padded, stamp
from skep.clock import SECOND
from skep.engine.base import Progress
from skep.errors import Invalid
from skep.model.spec import TaskSpec
from skep.node.plain_config import UpdateRequest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{bad", "invalid character 'b' looking for beginning of object key string"),
        ('{"a":1', "unexpected EOF"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 "b":2}', "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("nope", "invalid character 'o' in literal null (expecting 'u')"),
        ("xyz", "invalid character 'x' looking for beginning of value"),
        ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
        ("-x", "invalid character 'x' in numeric literal"),
        ('"a\nb"', "invalid character '\\n' in string literal"),
        ('"\\q"', "invalid character 'q' in string escape code"),
    ],
)
def test_broken_json_is_described_as_go_does(text: str, says: str) -> None:
    assert syntax_error(text.encode()) == says


@pytest.mark.parametrize("given", [{"x": 10**30}, {"x": [{"y": -(2**63) - 1}]}])
def test_a_number_that_no_file_can_hold_is_refused_wherever_it_stands(given: dict[str, object]) -> None:
    with pytest.raises(Invalid, match="cannot unmarshal number"):
        check_numbers(TaskSpec(plugin_spec=given))
    check_numbers(TaskSpec(plugin_spec={"x": 2**63 - 1, "y": [True, 1.5, "z"]}))


def test_every_body_is_looked_at_for_such_numbers() -> None:
    with pytest.raises(
        Invalid, match="cannot unmarshal number 9223372036854775808 into Go struct field cpu_realtime_runtime of type int64"
    ):
        convert({"CpuRealtimeRuntime": 1 << 63}, UpdateRequest)
    assert convert({"CpuRealtimeRuntime": (1 << 63) - 1, "Unknown": 1 << 80}, UpdateRequest).cpu_realtime_runtime == (1 << 63) - 1


def test_json_that_nests_without_end_is_refused() -> None:
    class Request:
        headers = {"Content-Type": "application/json"}
        body_exists = True

        def __init__(self, depth: int) -> None:
            self.depth = depth

        async def read(self) -> bytes:
            return b'{"a":' * self.depth + b"1" + b"}" * self.depth

    for depth in (600, 900, 100_000):
        with pytest.raises(Invalid, match="exceeded max depth"):
            asyncio.run(read_json(Request(depth)))  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_good_json_has_no_syntax_error(value: object) -> None:
    assert syntax_error(json.dumps(value).encode()) is None


@given(st.binary())
def test_any_bytes_are_judged_without_an_exception(data: bytes) -> None:
    syntax_error(data)


def test_deep_json_does_not_exhaust_the_stack() -> None:
    assert syntax_error(b"[" * 100_000) == "exceeded max depth"


def test_nulls_are_left_out_of_objects_only() -> None:
    assert without_nulls({"a": None, "b": {"c": None, "d": [None, {"e": None}]}}) == {"b": {"d": [None, {}]}}


def test_booleans_of_the_swarm_are_go_s() -> None:
    assert [go_bool({"x": t}, "x") for t in ("1", "t", "TRUE", "0", "f", "False", "")] == [True, True, True, False, False, False, False]
    with pytest.raises(Invalid, match='^invalid value for x: zz: strconv.ParseBool: parsing "zz": invalid syntax$'):
        go_bool({"x": "zz"}, "x")


def test_booleans_of_containers_take_any_word() -> None:
    assert [loose_bool({"x": t}, "x") for t in ("", "0", "No", "false", "none", "1", "zz")] == [False] * 5 + [True, True]
    assert not loose_bool({}, "x")


def test_versions_are_unsigned() -> None:
    assert version({"version": "18446744073709551615"}, "service") == 2**64 - 1
    for text, why in (("", "invalid syntax"), ("-1", "invalid syntax"), ("18446744073709551616", "value out of range")):
        with pytest.raises(Invalid) as error:
            version({"version": text}, "service")
        assert error.value.message == f"invalid service version '{text}': strconv.ParseUint: parsing \"{text}\": {why}"


def test_times_are_seconds_or_rfc_3339() -> None:
    assert when({"since": "12"}, "since") == 12 * SECOND
    assert when({"since": "12.5"}, "since") == 12 * SECOND + 500_000_000
    assert when({"since": "1970-01-01T00:00:10.25Z"}, "since") == 10 * SECOND + 250_000_000
    assert when({"since": "1970-01-01T01:00:00+01:00"}, "since") == 0
    assert when({}, "since") == 0
    for text in ("x", "1970-13-01T00:00:00Z", "1e3"):
        with pytest.raises(Invalid):
            when({"since": text}, "since")


def test_tail_takes_words_for_all() -> None:
    assert [tail({"tail": t}) for t in ("all", "", "x", "-3", "0", "12")] == [-1, -1, -1, -1, 0, 12]


@given(st.integers(min_value=1, max_value=4_000_000_000 * SECOND))
def test_times_survive_being_written_and_read(ns: int) -> None:
    assert when({"t": stamp(ns)}, "t") == ns
    assert when({"t": padded(ns)}, "t") == ns


def test_trailing_zeros_are_cut_as_go_does() -> None:
    assert stamp(1_795_405_652 * SECOND + 120) == "2026-11-23T03:47:32.00000012Z"
    assert stamp(1_795_405_652 * SECOND) == "2026-11-23T03:47:32Z"
    assert padded(1_795_405_652 * SECOND + 120) == "2026-11-23T03:47:32.000000120Z"
    assert stamp(0) == "0001-01-01T00:00:00Z"


def test_ages_in_docker_s_words() -> None:
    minute, hour, day = 60, 3600, 86400
    cases = {
        0: "Less than a second", 1: "1 second", 59: "59 seconds", 61: "About a minute", 119: "About a minute", 120: "2 minutes",
        59 * minute: "59 minutes", 61 * minute: "About an hour", 47 * hour: "47 hours", 3 * day: "3 days", 15 * day: "2 weeks",
        100 * day: "3 months", 800 * day: "2 years",
    }  # fmt: skip
    assert {seconds: ago(seconds * SECOND) for seconds in cases} == cases


def test_both_encodings_of_filters_mean_the_same() -> None:
    accepted = frozenset({"label"})
    assert parse('{"label":{"a=b":true,"c":false}}', accepted).values == parse('{"label":["a=b"]}', accepted).values == {"label": ("a=b",)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bad", "invalid filter"),
        ("[]", "invalid filter"),
        ('{"a":1}', "invalid filter"),
        ('{"a":[1]}', "invalid filter"),
        ('{"bogus":["x"]}', "invalid filter 'bogus'"),
    ],
)
def test_wrong_filters_are_refused(text: str, says: str) -> None:
    with pytest.raises(Invalid) as error:
        parse(text, frozenset({"a"}))
    assert error.value.message == says


def test_filters_match_as_docker_s_do() -> None:
    held = Filters({"name": ("we", "x"), "label": ("a", "b=1")})
    assert held.prefix("name", "web") and not held.prefix("name", "aweb")
    assert held.matches("name", "aweb") and held.exact("other", "anything")
    assert held.labels("label", {"a": "", "b": "1"}) and not held.labels("label", {"a": "", "b": "2"})
    assert not held.labels("label", {"b": "1"})
    assert Filters({"name": ("[",)}).matches("name", "[") and not Filters({"name": ("[",)}).matches("name", "x")


def test_the_store_takes_an_empty_value_for_any() -> None:
    assert swarm_labels({"a": "x"}, ("a=",)) and swarm_labels({"a": "x"}, ("a=x",)) and not swarm_labels({"a": "x"}, ("a=y",))
    assert not swarm_labels(None, ("a",))


def test_references_are_judged_in_docker_s_words() -> None:
    assert split_reference("registry:5000/a/b:1@sha256:" + "0" * 64) == ("registry:5000/a/b", "1", "sha256:" + "0" * 64)
    assert split_reference("web") == ("web", "", "")
    for text, says in (
        ("BAD", "invalid reference format: repository name (library/BAD) must be lowercase"),
        ("a/BAD", "invalid reference format: repository name (a/BAD) must be lowercase"),
        ("a b", "invalid reference format"),
        ("web:", "invalid reference format"),
        ("web@sha256:zz", "invalid reference format"),
        ("", "invalid reference format"),
    ):
        with pytest.raises(Invalid) as error:
            split_reference(text)
        assert error.value.message == says, text
    assert (tagged("web"), tagged("web:1"), tagged("UPPER")) == ("web:latest", "web:1", "UPPER")


def test_progress_has_docker_s_bar() -> None:
    line = progress_line(Progress(status="Downloading", id="abc", current=500, total=1000))
    assert line["progress"] == "[" + "=" * 25 + ">" + " " * 24 + "]    500B/1kB".replace("    ", " ")
    assert line["progressDetail"] == {"current": 500, "total": 1000}
    assert progress_line(Progress(status="Pulling from web", id="1")) == {"status": "Pulling from web", "id": "1"}


def test_old_clients_fields_are_dropped() -> None:
    spec = {"TaskTemplate": {"ContainerSpec": {"Image": "a", "Ulimits": [1], "Sysctls": {}}, "Placement": {"MaxReplicas": 1}}}
    assert as_of((1, 50), spec) is spec
    assert as_of((1, 39), spec) == {"TaskTemplate": {"ContainerSpec": {"Image": "a"}, "Placement": {}}}
    assert as_of((1, 40), spec)["TaskTemplate"]["ContainerSpec"] == {"Image": "a", "Sysctls": {}}
    assert spec["TaskTemplate"]["ContainerSpec"]["Ulimits"] == [1]


def test_frames_and_details() -> None:
    assert frame(2, b"err\n") == b"\2\0\0\0\0\0\0\4err\n"
    assert log_details({"b": "x y", "a": "1,2"}) == "a=1%2C2,b=x+y"


def test_detach_keys() -> None:
    assert detach_keys("") == b"\x10\x11" and detach_keys("ctrl-a,x") == b"\x01x"
    with pytest.raises(ValueError, match="Unknown character: 'nope'"):
        detach_keys("nope")
    watch = KeyWatch(b"\x10\x11")
    assert watch.feed(b"a\x10") == b"a" and watch.feed(b"b") == b"\x10b" and not watch.detached
    assert watch.feed(b"\x10\x10\x11tail") == b"\x10" and watch.detached


@given(st.binary(max_size=40))
def test_bytes_without_the_detach_keys_pass_unchanged(data: bytes) -> None:
    watch = KeyWatch(b"\x10\x11")
    passed = b"".join(watch.feed(data[i : i + 1]) for i in range(len(data)))
    if b"\x10\x11" not in data:
        assert passed + b"\x10" * watch.held == data
