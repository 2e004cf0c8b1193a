"""Names and paths of a one-machine cluster, and a state file that was torn, edited or lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.errors import Invalid
from skep.local import layout as module
from skep.local.layout import Layout, NodePlan, default_subnet, layout, names


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKEP_CLUSTERS_ROOT", str(tmp_path / "lib"))
    monkeypatch.setenv("SKEP_CLUSTERS_RUN", "/run/sktl")
    return tmp_path


def a_layout(name: str = "one") -> Layout:
    at = layout(name)
    at.subnet, at.created, at.ready = "10.220.3.0", 12, True
    at.nodes = [NodePlan("manager", at.host_address(10), manager=True), NodePlan("worker01", at.host_address(11))]
    at.registry, at.publish, at.stack = True, [(8000, 8080)], "/srv/app"
    Path(at.root).mkdir(parents=True)
    return at


def test_what_is_saved_is_read_again() -> None:
    at = a_layout()
    at.save()
    assert layout("one") == at
    assert layout("one").members == ["manager", "worker01", "registry"]
    assert layout("one").address("worker01") == "10.220.3.11" and layout("one").address("registry") == "10.220.3.5"


@given(cut=st.integers(0, 10_000))
def test_a_torn_state_is_as_good_as_none(cut: int) -> None:
    at = layout("torn")
    Path(at.root).mkdir(parents=True, exist_ok=True)
    whole = Layout("torn", at.root, at.run, "10.220.3.0", [NodePlan("manager", "10.220.3.10", True)])
    whole.save()
    text = whole.state.read_text()
    whole.state.write_text(text[: cut % len(text)])
    assert layout("torn") == at


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"nodes": 3, "publish": []}', '{"nodes": [{"name": "x"}], "publish": []}', "\x00\x00"]
)
def test_a_state_that_says_something_else(text: str) -> None:
    at = a_layout("odd")
    at.state.write_text(text)
    assert layout("odd").nodes == []


def test_a_state_never_leads_elsewhere() -> None:
    """Name and folders follow from the name, whatever the file says: `down` removes folders."""
    at = a_layout()
    at.save()
    saved = json.loads(at.state.read_text())
    at.state.write_text(json.dumps(saved | {"root": "/", "run": "/", "name": "../..", "later": 1}))
    assert layout("one") == at


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a/b", "..", "a" * 17, "a b", "ä", "a\n"])
def test_names_that_will_not_do(name: str) -> None:
    with pytest.raises(Invalid, match="cluster name .*: must be 1 to 16 of a-z, 0-9 and -"):
        layout(name)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?", fullmatch=True))
def test_names_that_do(name: str) -> None:
    at = layout(name)
    assert at.cgroup == f"skep-{name}" and at.run == f"/run/sktl/{name}"
    assert len(str(at.socket("worker64"))) < 108


def test_folders_that_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEP_CLUSTERS_RUN", "/run/" + "x" * 80)
    with pytest.raises(Invalid, match="too long"):
        layout("one")
    monkeypatch.setenv("SKEP_CLUSTERS_RUN", "here")
    with pytest.raises(Invalid, match="must be an absolute path"):
        layout("one")
    monkeypatch.setenv("SKEP_CLUSTERS_RUN", "/run/x")
    monkeypatch.setenv("SKEP_CLUSTERS_ROOT", "/run/clusters")
    with pytest.raises(Invalid, match="must not be below /run"):
        layout("one")


def test_pieces_are_found_without_a_state(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup = folders / "cgroup"
    for piece in ("pids/skep-held", "memory/skep-held", "memory/skep-Not_A_Name", "memory/other"):
        (cgroup / piece).mkdir(parents=True)
    (folders / "lib/data-only").mkdir(parents=True)
    monkeypatch.setattr(module, "CGROUP", cgroup)
    assert names() == ["data-only", "held"]
    assert layout("held").there() and layout("data-only").there() and not layout("none").there()


def test_controllers_of_both_kinds(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = folders / "v1", folders / "v2"
    for controller in ("cpu,cpuacct", "memory", "pids", "systemd", "freezer", "unified"):
        (one / controller).mkdir(parents=True)
    (one / "cpu").symlink_to("cpu,cpuacct")
    (two / "skep-one").mkdir(parents=True)
    (two / "cgroup.controllers").touch()
    monkeypatch.setattr(module, "CGROUP", one)
    assert {str(p.relative_to(one)) for p in layout("one").cgroups("host")} == {
        "pids/skep-one/host", "cpu/skep-one/host", "memory/skep-one/host", "systemd/skep-one/host",
    }  # fmt: skip
    (one / "freezer/skep-one/manager").mkdir(parents=True)
    assert layout("one").cgroup_trees() == [one / "freezer/skep-one"]
    assert layout("one").cgroup_trees("manager") == [one / "freezer/skep-one/manager"]
    monkeypatch.setattr(module, "CGROUP", two)
    assert layout("one").cgroups("host") == [two / "skep-one/host"] and layout("one").cgroup_trees() == [two / "skep-one"]


@given(st.text("abc-", min_size=1, max_size=16), st.sets(st.integers(0, 40 * 256 - 1), max_size=50))
def test_a_subnet_follows_from_the_name_and_gives_way(name: str, others: set[int]) -> None:
    first = default_subnet(name, set())
    assert first == default_subnet(name, set()), "the same name, the same subnet"
    taken = {first} | {f"10.{210 + n // 256}.{n % 256}.0" for n in others}
    other = default_subnet(name, taken)
    a, b, c, d = (int(x) for x in other.split("."))
    assert other not in taken and a == 10 and 210 <= b <= 249 and 0 <= c <= 255 and d == 0


def test_no_subnet_is_left() -> None:
    with pytest.raises(Invalid, match="no free /24 is left"):
        default_subnet("one", {f"10.{210 + n // 256}.{n % 256}.0" for n in range(40 * 256)})
