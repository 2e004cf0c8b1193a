"""A cluster network."""

from __future__ import annotations

from skep.model.base import Object
from skep.model.spec import IPAMConfig, NetworkSpec


class Network(Object, frozen=True, kw_only=True):
    spec: NetworkSpec
    driver: str = "overlay"
    options: dict[str, str] = {}
    """Driver options in force, the VNI among them (`com.docker.network.driver.overlay.vxlanid_list`)."""
    ipam: tuple[IPAMConfig, ...] = ()
    """Subnets and gateways in force, filled in by the allocator; empty = not allocated yet."""
    vni: int = 0
    cursor: int = 0
    """The last address given, as an offset into the first subnet: addresses come in turn, freed ones only after wrap-around."""
    predefined: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def allocated(self) -> bool:
        """Node-local drivers need nothing of the cluster's."""
        return bool(self.ipam) or self.driver != "overlay"
