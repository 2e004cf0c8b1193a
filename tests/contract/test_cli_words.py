"""Numbers, flags, tables and templates of the command line, by themselves."""

from __future__ import annotations

from calendar import timegm
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.cli.flags import Command, Flag, Usage, parse
from skep.cli.gotemplate import BadTemplate, Template
from skep.cli.names import familiar
from skep.cli.registry import tagged
from skep.cli.service_logs import frames
from skep.cli.shell import Failed
from skep.cli.table import aligned, labelled, labelled_headers, render
from skep.cli.words import (
    SECOND,
    Bad,
    go_duration,
    human_duration,
    human_size,
    natural,
    parse_bytes,
    parse_cpus,
    parse_duration,
    parse_time,
)

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1s", SECOND),
        ("1.5h", 90 * MINUTE),
        ("-1m30s", -90 * SECOND),
        ("100ms", SECOND // 10),
        ("0", 0),
        ("3us", 3000),
        (".5s", SECOND // 2),
    ],
)
def test_durations_are_read_as_go_does(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5", 'time: missing unit in duration "5"'),
        ("", 'time: invalid duration ""'),
        ("x", 'time: invalid duration "x"'),
        ("5q", 'time: unknown unit "q" in duration "5q"'),
        ("s", 'time: invalid duration "s"'),
    ],
)
def test_bad_durations(text: str, why: str) -> None:
    with pytest.raises(Bad) as caught:
        parse_duration(text)
    assert str(caught.value) == why


@given(st.integers(-(10**17), 10**17))
def test_a_written_duration_is_read_back(ns: int) -> None:
    assert parse_duration(go_duration(ns)) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (SECOND // 2, "Less than a second"),
        (SECOND, "1 second"),
        (59 * SECOND, "59 seconds"),
        (61 * SECOND, "About a minute"),
        (59 * MINUTE, "59 minutes"),
        (80 * MINUTE, "About an hour"),
        (47 * HOUR, "47 hours"),
        (72 * HOUR, "3 days"),
        (24 * 20 * HOUR, "2 weeks"),
        (24 * 90 * HOUR, "3 months"),
        (24 * 900 * HOUR, "2 years"),
    ],
)
def test_ages_in_words(ns: int, text: str) -> None:
    assert human_duration(ns) == text


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)))
def test_times_are_read_to_the_nanosecond(when: datetime) -> None:
    text = when.strftime("%Y-%m-%dT%H:%M:%S") + f".{when.microsecond:06d}789Z"
    assert parse_time(text) == timegm(when.timetuple()) * SECOND + when.microsecond * 1000 + 789


def test_times_with_zones_and_without_meaning() -> None:
    assert parse_time("2026-11-23T04:00:00+01:00") == parse_time("2026-11-23T03:00:00Z")
    assert parse_time("0001-01-01T00:00:00Z") == 0
    assert parse_time("") == parse_time("soon") == 0


@pytest.mark.parametrize(
    ("text", "size"), [("64M", 64 << 20), ("1.5g", 3 << 29), ("4MiB", 4 << 20), ("512", 512), ("10 kb", 10240), ("1b", 1)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "-5", "abc", "1.2.3x", "5x"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(Bad) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"invalid size: '{text}'"


@pytest.mark.parametrize(("text", "nano"), [("0.5", 500_000_000), ("2", 2 * 10**9), ("1e2", 10**11), (".25", 250_000_000), ("1e-3", 10**6)])
def test_cpus(text: str, nano: int) -> None:
    assert parse_cpus(text) == nano


def test_sizes_are_written_with_four_digits() -> None:
    assert [human_size(n) for n in (0, 1023, 64 << 20, 25276510208)] == ["0B", "1023B", "64MiB", "23.54GiB"]


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["web10", "web2", "web", "a1"], key=natural) == ["a1", "web", "web2", "web10"]


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("docker.io/library/nginx:1@sha256:0", "nginx:1"),
        ("registry:5000/a/b:2@sha256:0", "registry:5000/a/b:2"),
        ("registry:5000/a@sha256:0", "registry:5000/a@sha256:0"),
        ("nginx", "nginx"),
        ("docker.io/grafana/loki:2", "grafana/loki:2"),
    ],
)
def test_images_in_their_familiar_form(image: str, shown: str) -> None:
    assert familiar(image) == shown


@pytest.mark.parametrize(
    ("image", "sent"),
    [("a", "a:latest"), ("r:5000/a", "r:5000/a:latest"), ("a:1", "a:1"), ("a@sha256:0", "a@sha256:0"), ("A", "A")],
)
def test_a_tag_is_added_where_one_may_be(image: str, sent: str) -> None:
    assert tagged(image) == sent


# flags

COMMAND = Command(
    "x",
    "[OPTIONS] A...",
    "Do",
    lambda: 0,
    (Flag("detach", "bool", "", "d"), Flag("quiet", "bool", "", "q"), Flag("name", "string", "", "n"), Flag("add", "list", "", "a")),
    most=None,
)


@pytest.mark.parametrize(
    ("words", "given", "arguments"),
    [
        ("-dq -n x a", {"detach": True, "quiet": True, "name": "x"}, ["a"]),
        ("-dnx a b", {"detach": True, "name": "x"}, ["a", "b"]),
        ("a --name=x b --detach=false", {"detach": False, "name": "x"}, ["a", "b"]),
        ("-n=x --add 1 -a2 -a=3", {"name": "x", "add": ["1", "2", "3"]}, []),
        ("a -- -d --name", {}, ["a", "-d", "--name"]),
        ("- a", {}, ["-", "a"]),
        ("--name= -d", {"name": "", "detach": True}, []),
        ("-d -d=0", {"detach": False}, []),
    ],
)
def test_flags_in_all_their_forms(words: str, given: dict[str, Any], arguments: list[str]) -> None:
    values, rest = parse(COMMAND, words.split())
    assert {flag.name: values[flag.name] for flag in COMMAND.flags if values.given(flag.name)} == given
    assert rest == arguments
    assert values.count == len(given)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--nope", "unknown flag: --nope"),
        ("-dz", "unknown shorthand flag: 'z' in -dz"),
        ("--name", "flag needs an argument: --name"),
        ("-dn", "flag needs an argument: 'n' in -dn"),
        ("-d=x", 'invalid argument "x" for "-d, --detach" flag: strconv.ParseBool: parsing "x": invalid syntax'),
    ],
)
def test_what_is_wrong_with_flags(words: str, why: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(COMMAND, words.split())
    assert (str(caught.value), caught.value.code) == (why, 125)


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        parse(COMMAND, words)
    except Usage as error:
        assert error.code == 125


# tables and templates


def test_a_column_is_as_wide_as_its_widest_cell_and_at_least_ten() -> None:
    assert (
        aligned([["ID", "NAME", "PORTS"], ["x" * 12, "é" * 9, ""]])
        == "ID             NAME        PORTS\n" + "x" * 12 + "   " + "é" * 9 + "   \n"
    )
    assert aligned([]) == ""


DATA = {"Name": "web", "Labels": {"b": "2", "a": "1"}, "Ports": [80, 81], "On": True, "No": None, "F": 0.5, "Empty": []}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{.Name}}", "web"),
        ("a{{- .Name -}}  b", "awebb"),
        ("a {{- /* c */ -}} b", "ab"),
        ("{{.Labels}} {{.Ports}} {{.On}} {{.F}} {{.Gone}} {{.No}}", "map[a:1 b:2] [80 81] true 0.5 <no value> <no value>"),
        ("{{json .Labels}}", '{"b":"2","a":"1"}'),
        ('{{.Labels.a}}{{index .Labels "b"}}{{index .Ports 1}}', "1281"),
        ("{{range .Ports}}<{{.}}>{{end}}", "<80><81>"),
        ("{{range $i, $p := .Ports}}{{$i}}={{$p}} {{end}}", "0=80 1=81 "),
        ("{{range $k, $v := .Labels}}{{$k}}{{$v}}{{end}}", "a1b2"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ('{{if eq .Name "a" "web"}}y{{else}}n{{end}}', "y"),
        ("{{if .Gone}}1{{else if .On}}2{{else}}3{{end}}", "2"),
        ("{{if and .On (not .Empty)}}y{{end}}", "y"),
        ("{{if or .Gone .Name}}{{or .Gone .Name}}{{end}}", "web"),
        ("{{with .Labels}}{{.a}}{{end}}{{with .Gone}}x{{else}}-{{end}}", "1-"),
        ('{{$n := .Name}}{{$n = "q"}}{{$n}} {{$.Name}}', "q web"),
        ('{{.Name | upper | printf "<%s>" | len}}', "5"),
        ('{{printf "%q %v %5s|%-5s|%d" .Name .On .Name .Name 7}}', '"web" true   web|web  |7'),
        (
            '{{join .Ports ","}} {{split "a,b" ","}} {{title "ab cd"}} {{pad .Name 1 2}}| {{truncate .Name 2}}',
            "80,81 [a b] Ab Cd  web  | we",
        ),
        ('{{println .Name}}{{print 1 "a"}}', "web\n1a"),
        ("{{len .Labels}}{{lt 1 2}}{{ge 1 2}}{{ne 1 2}}{{slice .Name 1 2}}", "2truefalsetruee"),
        ("{{`raw \"x\"`}} {{'a'}} {{1.5}} {{true}}", 'raw "x" 97 1.5 true'),
        ('{{(index .Ports 0)}} {{html "<a>"}}', "80 &lt;a&gt;"),
    ],
)
def test_templates(text: str, shown: str) -> None:
    assert Template(text).render(DATA) == shown


@pytest.mark.parametrize(
    "text",
    [
        "{{",
        "{{.Name",
        "{{nope .}}",
        "{{if .On}}",
        "{{end}}",
        "{{else}}",
        "{{range .Name}}{{end}}",
        "{{.Name.Inner}}",
        "{{$gone}}",
        "{{index .Ports 9}}",
        "{{(.Name}}",
        "{{.Name | }}",
        "{{lt .Name 1}}",
        "{{upper 1}}",
        "{{eq 1}}",
        "{{?}}",
        "{{.Name .On}}",
    ],
)
def test_templates_that_cannot_be(text: str) -> None:
    with pytest.raises(BadTemplate):
        Template(text).render(DATA)


@given(st.text(alphabet="{}.|$()\"' aif end range-:=", max_size=30))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        Template(text).render(DATA)
    except BadTemplate:
        pass


# log frames


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=8), st.integers(1, 9))
def test_frames_are_found_however_they_are_cut(sent: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload for stream, payload in sent)
    assert list(frames(data[n : n + size] for n in range(0, len(data), size))) == sent


def test_what_is_no_frame_is_said() -> None:
    with pytest.raises(Failed):
        list(frames([b"plain text, not framed"]))


def test_a_label_by_its_name() -> None:
    rows = [labelled({"ID": "1"}, {"Labels": {"a.b": "x", "c": "<"}}), labelled({"ID": "2"}, {"Labels": None})]
    headers = labelled_headers({"ID": "ID"})
    assert render([], rows, '{{.ID}}:{{.Label "a.b"}}:{{"c" | .Label}}', headers) == "1:x:<\n2::\n"
    assert render([], rows[1:], 'table {{.ID}}\\t{{.Label "com.ex-am_ple"}}', headers) == "ID        ex am ple\n2         \n"
    assert render([], rows[:1], 'table {{.ID}}\\t{{.Label "a.b"}}', headers).splitlines()[1] == "1         x"
    assert render([], rows[:1], '{{if eq (.Label "a.b") "x"}}yes{{end}}', headers) == "yes\n"
    assert render([], rows[:1], "json", headers) == '{"ID":"1"}\n'
    with pytest.raises(Failed, match="wrong number of args for Label: want 1 got 0"):
        render([], rows, "{{.Label}}", headers)
