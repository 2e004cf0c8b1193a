"""The resolver's process lives, dies, hangs and is replaced; containers come and go; skepd is away. Real namespaces."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dnslib
import pytest
from names_world import BASE, NamesWorld, based, boxed, found, local, named, snapshot, task, until
from netlab import within

from skep.datapath import netns, nft, orders, sockets
from skep.datapath.base import Resolving, Sandbox
from skep.datapath.resolver_process import Line, readable
from skep.datapath.resolving import ResolverNames
from skep.errors import SkepError

pytestmark = pytest.mark.root


@pytest.fixture
def world() -> Iterator[NamesWorld]:
    with based() as it:
        yield it


@pytest.fixture
def box(world: NamesWorld) -> Path:
    return boxed(world)


def test_sandboxes_come_and_go_without_leaks(world: NamesWorld, box: Path) -> None:
    sizes = []
    for _ in range(200):
        path = world.sandbox("cycle", "10.0.1.60")
        world.serve(path, "net1id")
        assert found(path, "web") == ["10.0.1.2"]
        world.loop.run(world.names.forget("cycle"))
        netns.remove(path)
        world.pins.remove(path)
        sizes.append(len(os.listdir(f"/proc/{world.pid}/fd")))
    assert sizes[0] == sizes[-1]
    assert sorted(os.listdir(world.names.folder / "sandboxes")) == ["box"]
    world.loop.run(world.names.forget("cycle"))


def test_serving_again_replaces(world: NamesWorld, box: Path) -> None:
    before = len(os.listdir(f"/proc/{world.pid}/fd"))
    world.serve(box, "net1id", "net2id", links={"x": "1.2.3.4"})
    assert found(box, "secret") == ["10.0.2.2"] and found(box, "x") == ["1.2.3.4"]
    world.serve(box, "net1id")
    assert found(box, "secret") == ["NXDOMAIN"]
    assert len(os.listdir(f"/proc/{world.pid}/fd")) == before


def test_killed_it_is_back_within_a_second_and_serves_everybody(world: NamesWorld, box: Path) -> None:
    world.loop.run(world.names.apply_local(local(("br1", "172.20.0.3", ("db",)))))
    both = world.sandbox("both", "10.0.1.70")
    world.serve(both, "net1id", "br1")
    world.loop.run(world.names.apply(snapshot(*BASE, task("web", 3, 1, "10.0.1.13"))))
    pid = world.pid
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    # nobody calls anything: its end is noticed; a question meanwhile waits rather than fails, as a libc repeats it
    until(lambda: _heard(both))
    assert time.monotonic() - begun < 2 and world.pid != pid
    assert found(both, "3.web") == ["10.0.1.13"] and found(both, "db") == ["172.20.0.3"] and found(box, "web") == ["10.0.1.2"]
    assert world.loop.run(world.names.compare()) == ["the resolver has died: another was started"]
    assert world.loop.run(world.names.compare()) == []


class Slow(ResolverNames):
    """Asks in a container before it tells a new process anything."""

    box = Path()
    patience = 0.3
    early: list[str]

    def _tell(self, line: Line, hello: orders.Done) -> None:
        data = dnslib.DNSRecord.question("3.web").pack()
        with sockets.inside(str(self.box), socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect(("127.0.0.11", 53))
            s.send(data)
            answered = readable(s.fileno(), self.patience)
            super()._tell(line, hello)
            s.settimeout(5)
            self.early = [str(answered), *sorted(str(rr.rdata) for rr in dnslib.DNSRecord.parse(s.recv(512)).rr)]


@pytest.mark.parametrize(("patience", "early"), [(0.3, ["False", "10.0.1.13"]), (6.0, ["True"])], ids=["told", "not told"])
def test_killed_before_it_saved_it_answers_when_it_has_been_told_again(
    world: NamesWorld, box: Path, patience: float, early: list[str]
) -> None:
    """What its files do not have yet is not denied meanwhile; one whom nobody tells anything answers from its files all the same."""
    until(lambda: (world.names.folder / "state").exists())
    world.loop.run(world.names.shut_down())
    names = world.names = Slow(world.names.folder.parent, resolvers=world.resolvers)
    names.box, names.patience, names.early = box, patience, []
    world.loop.run(names.start_up())
    names.early = []
    world.loop.run(names.apply(snapshot(*BASE, task("web", 3, 1, "10.0.1.13"))))
    os.kill(world.pid, signal.SIGKILL)
    until(lambda: bool(names.early))
    assert names.early == early
    assert found(box, "3.web") == ["10.0.1.13"]


def _heard(path: Path) -> bool:
    try:
        return found(path, "3.web", timeout=0.05) == ["10.0.1.13"]
    except TimeoutError:
        return False


def test_skepd_away_and_back(world: NamesWorld, box: Path) -> None:
    pid = world.pid
    until(lambda: (world.names.folder / "state").exists())
    world.loop.run(world.names.shut_down())
    assert found(box, "web") == ["10.0.1.2"]
    world.names = world.new_names()
    world.loop.run(world.names.start_up())
    assert world.pid == pid and found(box, "web") == ["10.0.1.2"]
    world.loop.run(world.names.apply(snapshot(*BASE, task("web", 3, 1, "10.0.1.13"))))
    assert found(box, "3.web") == ["10.0.1.13"]
    # both die: what comes up knows what it last had on file
    until(lambda: b"10.0.1.13" in (world.names.folder / "state").read_bytes())
    world.loop.run(world.names.shut_down())
    os.kill(pid, signal.SIGKILL)
    world.names = world.new_names()
    world.loop.run(world.names.start_up())
    assert world.pid != pid and found(box, "3.web") == ["10.0.1.13"]


def test_another_build_takes_over_without_a_question_lost(world: NamesWorld, box: Path) -> None:
    until(lambda: (world.names.folder / "state").exists())
    old = world.pid
    world.loop.run(world.names.shut_down())
    stop, lost, asked = threading.Event(), [], []

    def client() -> None:
        while not stop.is_set():
            try:
                asked.append(found(box, "web", timeout=1))
            except TimeoutError:
                lost.append(time.monotonic())

    thread = threading.Thread(target=client)
    thread.start()
    try:
        world.names = world.new_names(build="the next")
        world.loop.run(world.names.start_up())
        until(lambda: not os.path.exists(f"/proc/{old}") or _is_zombie(old))
    finally:
        stop.set()
        thread.join()
    assert world.pid != old
    assert not lost and len(asked) > 20 and all(a == ["10.0.1.2"] for a in asked)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_rules_and_tables_taken_away_are_laid_anew(world: NamesWorld, box: Path) -> None:
    fd = netns.opened(box)
    handle = nft.rules(fd)
    handle.run("delete table ip skep_names")
    with pytest.raises(OSError):
        found(box, "web", timeout=0.2)
    (said,) = world.loop.run(world.names.compare())
    assert said == "names did not resolve over UDP in sandbox box: laid anew"
    assert found(box, "web") == found(box, "web", tcp=True) == ["10.0.1.2"]
    assert world.loop.run(world.names.compare()) == []
    world.loop.run(world.names.destroy())
    assert handle.run("list tables") == "" and not world.names.folder.exists()
    handle.close()
    os.close(fd)


def test_a_resolver_that_hangs_is_replaced(world: NamesWorld, box: Path) -> None:
    world.loop.run(world.names.shut_down())
    world.names = world.new_names(patience=0.3)
    world.loop.run(world.names.start_up())
    pid = world.pid
    os.kill(pid, signal.SIGSTOP)
    world.loop.run(world.names.apply(snapshot(*BASE, task("web", 3, 1, "10.0.1.13"))))
    assert world.pid != pid and found(box, "3.web") == ["10.0.1.13"]


def test_what_a_name_means_on_a_network(world: NamesWorld) -> None:
    resolve = world.names.resolve
    assert world.loop.run(resolve("net1id", "Web")) == ("10.0.1.2",)
    assert world.loop.run(resolve("net2id", "web")) == ()
    assert world.loop.run(resolve("net1id", "2.1.0.10.in-addr.arpa")) == ("web.net1",)


def test_a_sandbox_that_is_not_there_is_an_error(world: NamesWorld) -> None:
    with pytest.raises(SkepError, match="No such file"):
        world.loop.run(world.names.serve(Sandbox(id="none", path=str(world.folder / "none")), (), Resolving()))
    assert world.loop.run(world.names.compare()) == []


def test_only_its_owner_may_give_orders(world: NamesWorld) -> None:
    assert (world.names.folder / "control.sock").stat().st_mode & 0o777 == 0o600
    assert world.names.folder.stat().st_mode & 0o777 == 0o700


def test_a_libc_finds_names_and_waits_for_a_resolver_that_is_replaced(world: NamesWorld, box: Path) -> None:
    """getent in the container's namespace, with the file that containers have."""
    file = world.folder / "container.conf"
    file.write_text("nameserver 127.0.0.11\nsearch example.org\noptions ndots:0 timeout:1\n")

    def getent(name: str) -> list[str]:
        script = f"mount --bind {file} /etc/resolv.conf && exec getent ahostsv4 {name}"
        done = within(box, lambda: subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False))
        return sorted({line.split()[0] for line in done.stdout.splitlines()})

    assert getent("web") == ["10.0.1.2"]
    assert getent("tasks.web") == ["10.0.1.11", "10.0.1.12"]
    assert getent("box") == ["10.0.1.31"]
    world.elsewhere(named)
    assert getent("example.org") == ["192.0.2.1"]
    assert getent("nothing") == []
    os.kill(world.pid, signal.SIGKILL)
    assert getent("web") == ["10.0.1.2"]


def test_one_that_was_killed_while_it_wrote_serves_each_container_once(world: NamesWorld, box: Path) -> None:
    folder = world.names.folder / "sandboxes"
    shutil.copy(folder / "box", folder / ".box.4711")
    until(lambda: (world.names.folder / "state").exists())
    before = len(os.listdir(f"/proc/{world.pid}/fd"))
    pid = world.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: world.names._line is not None and world.pid != pid)
    assert found(box, "web") == ["10.0.1.2"]
    assert os.listdir(folder) == ["box"] and len(os.listdir(f"/proc/{world.pid}/fd")) == before
    world.loop.run(world.names.forget("box"))
    assert len(os.listdir(f"/proc/{world.pid}/fd")) == before - 2


def test_the_comparison_goes_on_when_one_cannot_be_served(world: NamesWorld, box: Path) -> None:
    for number in range(3):
        world.serve(world.sandbox(f"more{number}", f"10.0.1.{60 + number}"), "net1id")
    line = world.names._line
    assert line is not None
    for id in ("more0", "more1"):
        line.ask(orders.Forget(id=id))
    netns.remove(world.folder / "more0")
    (world.folder / "more0").touch()
    said = world.loop.run(world.names.compare())
    assert [s for s in said if "more1" in s] == ["the resolver did not know sandbox more1: told it again"]
    assert any("more0" in s and "cannot serve it" in s for s in said)
    assert found(world.folder / "more1", "web") == ["10.0.1.2"]
