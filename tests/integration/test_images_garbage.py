"""A real skepd on a disk that fills removes unused images by its own loop, and none that is needed. Time is what is not real: two hours
pass by setting back, while skepd is down, what it has written down about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_chaos_world import DISK, PORT, ChaosWorld

from skep.clock import SECOND
from skep.local.build import Entry, layer
from skep.node.imagegc import MINIMUM_AGE, SERVICE

pytestmark = pytest.mark.root
RUNS, STOPPED, UNUSED = (f"127.0.0.1:{PORT}/app{number}:1" for number in range(3))


class Skepd(ChaosWorld):
    """The daemon as it is started by hand, its data on a disk of its own, with the settings that it has when nobody sets any."""

    def start(self) -> None:
        if not self.registry.pid:
            self._start_registry()
        options = {
            "data-root": self.folder / "d",
            "run-root": self.folder / "r",
            "host": f"unix://{self.socket}",
            "docker-socket": "",
            "socket-group": "",
            "cgroup-parent": self.folder.name,
        }
        command = self.inside(sys.executable, "-m", "skep.daemon", *(f"--{name}={value}" for name, value in options.items()))
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(command, stdout=log, stderr=log)
        self.until(self._answers, "skepd answers", 60)

    def _answers(self) -> bool:
        assert self.daemon is not None and self.daemon.poll() is None, self.log.read_text()
        try:
            return self.api("GET", "/_ping")[0] == 200
        except OSError:
            return False

    def imported(self, name: str, reference: str = "") -> str:
        """The id of an image that no registry has."""
        file = self.folder / f"{name}.tar"
        file.write_bytes(layer({name: Entry(os.urandom(1 << 20))}))
        return self.out("import", "--change", 'CMD ["none"]', str(file), *([reference] if reference else []))

    def ids(self) -> set[str]:
        return {image["Id"] for image in self.api("GET", "/images/json?all=1")[1]}

    def id_of(self, reference: str) -> str:
        return str(self.api("GET", f"/images/{reference}/json")[1]["Id"])

    def pass_time(self, young: Collection[str]) -> None:
        """More than what makes an image old, for all but these."""
        names, uses = self.folder / "d/images/tags.json", self.folder / "d/image-uses.json"
        for file, field in ((names, "times"), (uses, "last")):
            found: dict[str, Any] = json.loads(file.read_text())
            assert found[field], f"nothing about time in {file}"
            found[field] = {id: at - (0 if id in young else MINIMUM_AGE + SECOND) for id, at in found[field].items()}
            file.write_text(json.dumps(found))

    def fill(self, percent: int) -> Path:
        filler = self.folder / "d" / "filler"
        disk = os.statvfs(filler.parent)
        total = (disk.f_blocks - disk.f_bfree + disk.f_bavail) * disk.f_frsize
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - total * (100 - percent) // 100)
        return filler


@pytest.fixture
def skepd() -> Iterator[Skepd]:
    with Skepd() as made:
        yield made


def test_unused_images_make_room_and_those_needed_stay(skepd: Skepd) -> None:
    for reference in (RUNS, STOPPED, UNUSED):
        skepd.docker("pull", "-q", reference)
    only_here, before = skepd.imported("only-here", "here:1"), skepd.imported("before")
    young, dangling = skepd.imported("young"), skepd.imported("dangling")
    skepd.docker("run", "-d", "--name", "runs", RUNS, "sleep", "1000000")
    # a service's task of today, and one of its image before
    skepd.docker("rm", skepd.out("create", "--label", f"{SERVICE}=svc", before))
    skepd.docker("create", "--name", "stopped", "--label", f"{SERVICE}=svc", STOPPED, "true")
    unused = skepd.id_of(UNUSED)
    everything = skepd.ids()
    assert len(everything) == 7 and {unused, only_here, before, young, dangling} < everything
    layers = set(os.listdir(skepd.folder / "d/images/layers"))

    skepd.stop()
    skepd.pass_time({young})
    skepd.start()
    assert skepd.ids() == everything, "there is room"

    skepd.stop()
    filler = skepd.fill(90)
    assert filler.stat().st_size > DISK // 2
    skepd.start()
    skepd.until(lambda: skepd.ids() == everything - {unused, dangling}, "the unused images are gone")
    skepd.until(lambda: "no more images can be removed" in skepd.log.read_text(), "the rest is said to stay")
    said = skepd.log.read_text()
    for id in (unused, dangling):
        assert f"image {id} removed: the disk is 9" in said
    # what two images share stays with the one that is left: of the pulled one its own layer goes, of the other all it had
    assert len(layers - set(os.listdir(skepd.folder / "d/images/layers"))) == 2
    assert {skepd.id_of(reference) for reference in (RUNS, STOPPED, "here:1")} < skepd.ids(), "with their names"
    assert skepd.inspect("runs")["State"]["Running"] and skepd.out("exec", "runs", "echo", "here") == "here"
    skepd.docker("start", "-a", "stopped")
    skepd.docker("rm", "stopped")
    assert skepd.ids() == everything - {unused, dangling}, "what was used a moment ago stays"
