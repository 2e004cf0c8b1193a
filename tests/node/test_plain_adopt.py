"""A container whose networks were being changed when the daemon was killed: it is on those that its record says, no more and no fewer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from test_plain import World, play

from skep.datapath.base import Place
from skep.errors import SkepError
from skep.model.network import Network
from skep.model.spec import IPAMConfig, NetworkSpec
from skep.node.plain_adopt import is_on
from skep.node.plain_config import EndpointSettings, extra_of
from skep.testing.fake_networks import FakeAttachments, FakeNetworks

PUBLISHED = {"80/tcp": [{"HostPort": "8080"}]}


async def start_anew(w: World) -> None:
    w.plain._queue = None
    for known in list(w.engine._queues):
        w.engine.unsubscribe(known)
    w.plain = w.new_plain()
    await w.plain.start_up()


@pytest.mark.parametrize("cut", ["connecting", "disconnected", "given back", "unpublished"])
def test_a_change_of_networks_that_was_cut_short_counts_as_not_done(tmp_path: Path, cut: str) -> None:
    async def story(w: World) -> None:
        one, two = [(await w.networks.create(name)).id for name in ("one", "two")]
        id = await w.run(HostConfig={"NetworkMode": "one", "PortBindings": PUBLISHED})
        if cut == "connecting":
            place = await w.networks.reserve(two, id)
            await w.datapath.connect(id, Place(network_id=two, address=place.address))
        else:
            await w.datapath.unpublish(id)
            if cut != "unpublished":
                await w.datapath.disconnect(id, one)
            if cut == "given back":
                await w.networks.release(id, one)
        record = w.record(id)
        await start_anew(w)
        assert [(p.network_id, p.address) for p in w.datapath.places[id]] == [(one, record.joined[0].address)]
        assert [e.network_id for e in w.networks.endpoints_of(id)] == [one]
        assert [p.published for p in w.datapath.ports[id]] == [8080]
        assert msgspec.structs.replace(w.record(id), joined=()) == msgspec.structs.replace(record, joined=())
        await w.plain.connect(two, id, EndpointSettings())
        assert set(w.datapath.networks_of(id)) == {one, two}
        await w.plain.disconnect(one, id)
        await w.plain.disconnect(two, id)
        assert not w.datapath.places[id] and not w.networks.endpoints_of(id)

    play(tmp_path, story)


@pytest.mark.parametrize("cut", ["nowhere", "disconnected", "given back", "left while it was asked for"])
def test_a_cluster_network_is_left_in_full_or_not_at_all(tmp_path: Path, cut: str) -> None:
    async def story(w: World) -> None:
        cluster = FakeAttachments()
        ipam = (IPAMConfig(subnet="10.7.0.0/24", gateway="10.7.0.1"),)
        cluster.known.append(Network(id="net", spec=NetworkSpec(name="over", attachable=True), ipam=ipam))
        w.plain.places.attachments = cluster
        await cluster.attach("net", "f" * 64)
        id = await w.run(HostConfig={"NetworkMode": "over"})
        record = w.record(id)
        assert (is_on(w.engine, id, "net"), is_on(w.engine, id, "other"), is_on(w.engine, "none", "net")) == (True, False, False)
        if cut != "nowhere":
            await w.datapath.disconnect(id, "net")
        if cut == "given back":
            await cluster.detach(id, "net")
            await cluster.detach("f" * 64)  # a lower address is free now
        await start_anew(w)
        w.plain.places.attachments = cluster
        if cut == "left while it was asked for":
            await cluster.detach(id, "net")
            await w.engine.amend(id, extra=extra_of(msgspec.structs.replace(record, joined=())))
        container = w.engine.get(id)
        assert container is not None
        await w.plain.places.adopt_attached(container, record, w.clock, w.plain._lock)
        if cut == "left while it was asked for":
            assert (w.datapath.places[id], is_on(w.engine, id, "net")) == ((), False)
            assert (id, "net") not in cluster.places
        else:
            assert [(place.network_id, place.address) for place in w.datapath.places[id]] == [("net", "10.7.0.201/24")]
            assert cluster.places[id, "net"] == "10.7.0.201/24"

    play(tmp_path, story)


def test_a_rename_that_was_cut_short_is_done(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        network = await w.networks.create("one")
        id = await w.run("before", HostConfig={"NetworkMode": "one"})
        await w.engine.amend(id, name="after")
        await start_anew(w)
        assert w.record(id).joined[0].names == ("after", id[:12])
        assert w.networks.endpoints(network.id)[0].names == ("after", id[:12])

    play(tmp_path, story)


def test_what_was_being_removed_is_not_started_again(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        id = await w.run(HostConfig={"RestartPolicy": {"Name": "unless-stopped"}})
        w.engine.fail["remove"] = SkepError("killed here")
        with pytest.raises(SkepError, match="killed here"):
            await w.plain.remove(id, force=True)
        await start_anew(w)
        assert not w.plain._due and w.record(id).stopped
        del w.engine.fail["remove"]
        await w.plain.remove(id)
        assert w.engine.get(id) is None

    play(tmp_path, story)


class FullDisk(FakeNetworks):
    async def announce(self, network_id: str, sandbox_id: str, names: tuple[str, ...]) -> None:
        raise SkepError("No space left on device")


def test_on_a_full_disk_a_network_can_be_left_and_a_rename_is_done_or_not(tmp_path: Path) -> None:
    async def story(w: World) -> None:
        w.networks = FullDisk(w.clock, w.rng)
        await start_anew(w)
        await w.networks.create("one")
        id = await w.run("before", HostConfig={"NetworkMode": "one"})
        with pytest.raises(SkepError, match="No space left"):
            await w.plain.rename(id, "after")
        container = w.engine.get(id)
        assert container is not None and container.config.name == "before"
        w.engine.disk_full = True
        await w.plain.disconnect("one", id)
        assert not w.datapath.places[id] and not w.record(id).joined

    play(tmp_path, story)


@pytest.mark.parametrize("closed", [False, True])
def test_a_cluster_network_is_meant_by_its_name_though_an_id_of_the_node_begins_with_it(tmp_path: Path, closed: bool) -> None:
    async def story(w: World) -> None:
        bridge = w.networks.get("bridge")
        assert bridge is not None
        cluster = FakeAttachments()
        over = Network(id="net", spec=NetworkSpec(name=bridge.id[0], attachable=True), ipam=(IPAMConfig(subnet="10.7.0.0/24"),))
        (cluster.closed if closed else cluster.known).append(over)
        w.plain.places.attachments = cluster
        id = await w.create(HostConfig={"NetworkMode": over.name})
        if closed:
            with pytest.raises(SkepError, match="not manually attachable|not found"):
                await w.plain.start(id)
            return
        await w.plain.start(id)
        assert w.datapath.networks_of(id) == ("net",)
        await w.plain.disconnect(over.name, id)
        await w.plain.connect(over.name, id, EndpointSettings())
        assert w.datapath.networks_of(id) == ("net",)
        await w.plain.connect(bridge.id[:12], id, EndpointSettings())
        assert set(w.datapath.networks_of(id)) == {"net", bridge.id}

    play(tmp_path, story)
