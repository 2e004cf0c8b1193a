"""The kernel's part and the resolver's behind one another: where one of them fails, the other is not forgotten."""

from __future__ import annotations

import asyncio

import pytest

from skep.datapath.base import Place, Resolving
from skep.datapath.node import NodeNetwork
from skep.errors import SkepError, Unavailable
from skep.testing.fake_context import StepClock
from skep.testing.fake_datapath import FakeDatapath
from skep.testing.fake_names import FakeNames

PLACES = (Place(network_id="n1", address="10.0.0.5/24"),)


def test_what_leaves_gives_back_its_address_though_the_resolver_does_not_answer() -> None:
    async def main() -> None:
        kernel, names = FakeDatapath(StepClock()), FakeNames()
        network = NodeNetwork(kernel, names)
        await network.attach("box", PLACES, resolving=Resolving())
        await network.join("192.0.2.1")
        names.fail = {call: Unavailable("the resolver does not answer") for call in ("serve", "forget", "apply")}
        await network.detach("box")
        assert not kernel.places
        with pytest.raises(SkepError, match="does not answer"):
            await network.attach("other", PLACES, resolving=Resolving())
        assert not kernel.places, "nothing of it stays"
        with pytest.raises(SkepError, match="does not answer"):
            await network.leave()
        assert kernel.address == "", "the kernel has left all the same"

    asyncio.run(main())
