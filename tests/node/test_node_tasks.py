"""The runtime of tasks over an engine and a data path in memory: images, network places, health, ends, a restart in between."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest
from task_world import CHECK, REFERENCE, World, image, item, play

from skep.clock import SECOND
from skep.engine.base import Container
from skep.errors import Conflict, Forbidden, Invalid, NotFound, SkepError
from skep.model import spec as s
from skep.model.task import Attachment
from skep.node.base import Tasks
from skep.node.container import NodeFacts
from skep.node.containers import Containers
from skep.node.tasks import TaskRuntime
from skep.node.volumes import Volumes

PINNED = "registry:5000/web:1@sha256:" + "1" * 64


INGRESS = (Attachment(network_id="ing", addresses=("10.0.0.5/24",)),)


HOST_PORT = s.EndpointSpec(ports=(s.PortConfig(protocol="tcp", target_port=80, published_port=8080, publish_mode="host"),))


def test_a_task_from_image_to_nothing() -> None:
    async def story(w: World) -> None:
        tasks: Tasks = w.runtime
        given = item(attachments=INGRESS, sysctls={"net.ipv4.tcp_syncookies": "0"})
        await tasks.prepare(given)
        await tasks.prepare(given)
        assert len(w.engine.all()) == 1 and w.datapath.places["tid"][0].address == "10.0.0.5/24"
        assert w.datapath.sysctls["tid"]["net.ipv4.tcp_syncookies"] == "0"
        assert w.datapath.sysctls["tid"]["net.ipv4.ip_unprivileged_port_start"] == "0"
        assert w.only().config.netns == "/run/netns/tid"
        status = tasks.status("tid")
        assert status is not None and status.container is not None and status.container.pid == 0
        await tasks.start(given)
        await tasks.start(given)
        assert w.engine.starts == [w.only().config.id]
        status = tasks.status("tid")
        assert status is not None and status.container is not None and status.container.pid == w.only().pid > 0
        w.engine.end(w.only().config.id, 3)
        assert (await tasks.wait(given)).code == 3
        assert "tid" not in w.datapath.places, "its address may be given to the next one now"
        status = tasks.status("tid")
        assert status is not None and status.container is not None and status.container.exit_code == 3
        await tasks.remove("tid")
        await tasks.remove("tid")
        assert tasks.known() == [] and tasks.status("tid") is None and not w.engine.all()

    play(story)


def test_a_chosen_host_name_is_told_as_it_was_expanded() -> None:
    async def story(w: World) -> None:
        for id, chosen, told in (("a", "{{.Service.Name}}-{{.Node.Hostname}}", "web-host1"), ("b", "", "")):
            await w.runtime.prepare(item(id, hostname=chosen))
            status = w.runtime.status(id)
            assert status is not None and status.container is not None and status.container.hostname == told

    play(story)


def test_who_is_on_its_networks_is_told_once_and_when_it_is_so() -> None:
    async def story(w: World) -> None:
        told: list[tuple[str, str, bool, bool]] = []

        def tell(action: str, container: Container) -> None:
            told.append(
                (action, container.config.extra["task"], container.config.extra["task"] in w.datapath.places, bool(w.engine.starts))
            )

        w.runtime.tell = tell
        given = item(attachments=INGRESS)
        await w.runtime.prepare(given)
        assert told == []
        await w.runtime.start(given)
        assert told == [("connect", "tid", True, False)], "before it starts"
        w.runtime = w.new_runtime()
        w.runtime.tell = tell
        await w.runtime.start_up()
        async with asyncio.TaskGroup() as group:
            group.create_task(w.runtime.wait(given))
            group.create_task(w.runtime.shutdown(given))
        await w.runtime.remove("tid")
        assert told[1:] == [("disconnect", "tid", False, True)], "also by a daemon that did not start it"
        await w.runtime.prepare(item("never", attachments=INGRESS))
        await w.runtime.remove("never")
        assert len(told) == 2, "one that never started was on none"

    play(story)


def test_images_pulled_or_not() -> None:
    async def story(w: World) -> None:
        pulls = w.engine.images_.pulls
        with pytest.raises(NotFound) as missing:
            await w.runtime.prepare(item(reference="nosuch:1"))
        assert missing.value.text == "No such image: nosuch:1: manifest for nosuch:1 not found: manifest unknown: manifest unknown"
        assert not w.datapath.places, "nothing is left of a task that could not be prepared for want of an image"
        await w.runtime.prepare(item("a"))
        await w.runtime.prepare(item("b"))
        assert pulls == ["nosuch:1", REFERENCE, REFERENCE], "a tag may have moved: it is asked for each time"
        w.engine.images_.add(PINNED, image())
        await w.runtime.prepare(item("c", PINNED))
        assert PINNED not in pulls, "a digest that is here is what is meant"
        w.engine.images_.remote[REFERENCE] = SkepError("connection refused")
        await w.runtime.prepare(item("d"))
        assert len(w.engine.all()) == 4, "a pull that fails where the image is present runs the local one"

    play(story)


def test_pulls_of_one_image_at_one_time_are_one() -> None:
    async def story(w: World) -> None:
        w.engine.images_.delay = SECOND
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(w.runtime.prepare(item(f"t{number}")))
        assert len(w.engine.images_.pulls) == 1 and len(w.engine.all()) == 20
        await w.runtime.prepare(item("later"))
        assert len(w.engine.images_.pulls) == 2

    play(story)


def test_bind_sources(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        bind = s.Mount(type="bind", source=str(tmp_path / "x"), target="/x")
        with pytest.raises(Invalid) as missing:
            await w.runtime.prepare(item(mounts=(bind,)))
        assert missing.value.text == f'invalid mount config for type "bind": bind source path does not exist: {tmp_path}/x'
        made = s.Mount(type="bind", source=str(tmp_path / "y"), target="/y", bind_options=s.BindOptions(create_mountpoint=True))
        await w.runtime.prepare(item(mounts=(made,)))
        assert (tmp_path / "y").is_dir()

    play(story)


def test_volumes_of_a_task(tmp_path: Path) -> None:
    """Named ones stay, those that nobody named go with the task, however often it was prepared."""

    async def story(w: World) -> None:
        volumes = Volumes(tmp_path / "volumes", w.clock, random.Random(5), containers=w.engine.all)
        w.engine.images_.remote[REFERENCE] = image(volumes=("/data", "/named"))
        w.runtime = TaskRuntime(w.engine, w.datapath, NodeFacts(hostname="h"), w.clock, random.Random(1), volumes=volumes)
        mounts = (
            s.Mount(type="volume", source="keep", target="/named", volume_options=s.VolumeOptions(no_copy=True)),
            s.Mount(type="volume", target="/own"),
            s.Mount(type="tmpfs", target="/t"),
        )
        await w.runtime.prepare(item(mounts=mounts))
        made = {m.target: m for m in w.only().config.mounts}
        assert set(made) == {"/named", "/own", "/t", "/data"}
        assert made["/named"].volume == "keep" and not made["/named"].copy_up
        assert made["/own"].copy_up and made["/own"].volume
        assert len(volumes.all()) == 3
        await w.runtime.start(item(mounts=mounts))
        with pytest.raises(Conflict, match="volume is in use"):
            await volumes.remove("keep")
        await w.runtime.shutdown(item(mounts=mounts))
        await w.runtime.remove("tid")
        assert [v.name for v in volumes.all()] == ["keep"]

    play(story)


def test_what_inspect_shows_of_a_task(tmp_path: Path) -> None:
    """What was asked for, under the names of `docker run`, kept with the container; the host's own limits are said."""

    async def story(w: World) -> None:
        volumes = Volumes(tmp_path / "volumes", w.clock, random.Random(5), containers=w.engine.all)
        w.engine.images_.remote[REFERENCE] = image(env=("A=image", "B=image"), exposed_ports=("80/tcp",))
        w.engine.facts["rlimits"] = {"RLIMIT_NOFILE": 100}
        w.runtime = TaskRuntime(w.engine, w.datapath, NodeFacts(hostname="h"), w.clock, random.Random(1), volumes=volumes)
        volume = s.Mount(type="volume", source="v{{.Task.Slot}}", target="/v", read_only=True)
        bind = s.Mount(type="bind", source=str(tmp_path), target="/b/", bind_options=s.BindOptions(propagation="rslave"))
        given = item(
            attachments=INGRESS,
            endpoint=HOST_PORT,
            mounts=(volume, bind),
            env=("A={{.Service.Name}}",),
            hosts=("1.2.3.4 db cache",),
            sysctls={"net.core.somaxconn": "9", "kernel.msgmax": "1"},
            dns_config=s.DNSConfig(nameservers=("1.1.1.1",)),
            ulimits=(s.Ulimit(name="nofile", soft=5, hard=500),),
            privileges=s.Privileges(no_new_privileges=True, seccomp=s.SeccompOpts(mode="unconfined")),
            stop_grace_period=3 * SECOND,
        )
        await w.runtime.prepare(given)
        shown = Containers(w.engine, w.runtime.health).describe(w.only()).asked
        assert shown is not None
        host, config = shown.host, shown.config
        assert host.mounts == (msgspec.structs.replace(volume, source="v1"), bind)
        assert (host.extra_hosts, host.dns, host.sysctls["net.core.somaxconn"]) == (("db:1.2.3.4", "cache:1.2.3.4"), ("1.1.1.1",), "9")
        assert host.security_opt == ("no-new-privileges=true", "seccomp=unconfined")
        assert [b.host_port for b in host.port_bindings["80/tcp"]] == ["8080"]
        assert (config.env, config.cmd, config.stop_timeout) == (("A=web", "B=image"), ("serve",), 3)
        points = {point.target: point for point in shown.points}
        assert (points["/v"].name, points["/v"].read_write, points["/b"].propagation) == ("v1", False, "rslave")
        assert (points["/v"].source, points["/b"].source) == (volumes.mountpoint(volumes.get("v1")), str(tmp_path))
        status = w.runtime.status("tid")
        assert status is not None and status.message == "ulimit nofile is 100 instead of 500: this host allows no more"

    play(story)


def test_what_the_cluster_does_not_allow_is_not_prepared() -> None:
    async def story(w: World) -> None:
        given = item()
        with pytest.raises(Forbidden, match="service web may not be privileged"):
            await w.runtime.prepare(msgspec.structs.replace(given, refused="service web may not be privileged"))
        assert not w.engine.all() and not w.engine.images_.pulls

    play(story)


def test_host_ports() -> None:
    async def story(w: World) -> None:
        given = item("a", attachments=INGRESS, endpoint=HOST_PORT)
        await w.runtime.prepare(given)
        await w.runtime.start(given)
        status = w.runtime.status("a")
        assert status is not None and [port.published_port for port in status.ports] == [8080]
        with pytest.raises(Conflict, match="Bind for 0.0.0.0:8080 failed: port is already allocated"):
            await w.runtime.prepare(item("b", attachments=INGRESS, endpoint=HOST_PORT))
        await w.runtime.shutdown(given)
        assert not w.datapath.ports
        await w.runtime.prepare(item("b", attachments=INGRESS, endpoint=HOST_PORT))
        with pytest.raises(SkepError, match="port 8080 is published in host mode: this needs a network"):
            await w.runtime.prepare(item("c", endpoint=HOST_PORT))

    play(story)


def test_shutdown_of_every_kind() -> None:
    async def story(w: World) -> None:
        await w.runtime.shutdown(item("nothing"))
        given = item(stop_grace_period=30 * SECOND)
        await w.runtime.prepare(given)
        await w.runtime.shutdown(given)
        w.engine.ignores.add("SIGTERM")
        await w.runtime.start(given)
        begin = w.clock.now()
        await w.runtime.shutdown(given)
        ended = w.only().exit
        assert ended is not None and ended.code == 137 and w.clock.now() - begin == 30 * SECOND
        await w.runtime.shutdown(given)

    play(story)


def test_a_start_that_fails_says_so() -> None:
    async def story(w: World) -> None:
        given = item()
        await w.runtime.prepare(given)
        w.engine.fail["start"] = NotFound('exec: "x": executable file not found in $PATH')
        with pytest.raises(NotFound) as failed:
            await w.runtime.start(given)
        assert failed.value.text == 'starting container failed: exec: "x": executable file not found in $PATH'

    play(story)


def test_a_restart_finds_what_is_there() -> None:
    async def story(w: World) -> None:
        running, ended = item("a", attachments=INGRESS, healthcheck=CHECK), item("b")
        for given in (running, ended):
            await w.runtime.prepare(given)
            await w.runtime.start(given)
        w.engine.end(w.engine.all()[1].config.id, 9)  # type: ignore[index]
        await w.datapath.attach("orphan", ())
        again = w.new_runtime()
        await again.start_up()
        assert again.known() == ["a", "b", "orphan"]
        await again.prepare(running)
        await again.start(running)
        assert len(w.engine.starts) == 2, "not one container is started anew"
        assert (await again.wait(ended)).code == 9
        for task_id in again.known():
            await again.remove(task_id)
        assert not w.engine.all() and not w.datapath.places

    play(story)


@pytest.mark.parametrize("turns", range(24))
def test_cancelled_anywhere_and_called_again(turns: int) -> None:
    """prepare is cancelled after so many turns of the loop; called again it ends well, and nothing is left when all is removed."""

    async def story(w: World) -> None:
        for call in ("create", "start"):
            w.engine.delay[call] = SECOND
        w.datapath.delay["attach"] = SECOND
        given = item(attachments=INGRESS)
        for work in (w.runtime.prepare, w.runtime.start):
            async with asyncio.TaskGroup() as group:
                task = group.create_task(work(given))
                for _ in range(turns * 10):
                    await asyncio.sleep(0)
                task.cancel()
            await work(given)
        assert w.only().running
        await w.runtime.remove("tid")
        assert not w.engine.all() and not w.datapath.places

    play(story)
