"""Subnet, gateway and VNI of a cluster network."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from skep.model.cluster import Cluster
from skep.model.defaults import ADDRESS_POOL, FIRST_VNI, SUBNET_SIZE
from skep.model.network import Network
from skep.model.node import Node
from skep.model.spec import IPAMConfig, NetworkSpec
from skep.plan.allocate.addresses import Taken, inside, overlapping, pool_subnets, subnet_of, unfit, with_gateway
from skep.plan.allocate.vni import LAST_VNI, OPTION, asked_vni
from skep.plan.view import View


class NoSubnet(Exception):
    """Why the network cannot be given addresses; Docker's text where Docker has one."""


def subnets_in_use(networks: Iterable[Network], besides: str = "") -> list[IPv4Network]:
    return [
        subnet
        for network in networks
        if network.id != besides and network.driver == "overlay"
        for config in network.ipam
        if (subnet := subnet_of(config.subnet)) is not None
    ]


def asked(spec: NetworkSpec) -> tuple[IPAMConfig, ...]:
    """The configs in which the user names a subnet."""
    return tuple(config for config in (spec.ipam_options.configs if spec.ipam_options else None) or () if config.subnet)


def given_subnets(spec: NetworkSpec, used: Iterable[IPv4Network]) -> tuple[IPAMConfig, ...]:
    """The user's subnets, with their gateways. Raises NoSubnet."""
    taken = list(used)
    configs = []
    for config in asked(spec):
        subnet = subnet_of(config.subnet)
        if subnet is None:
            if ":" not in config.subnet:
                raise NoSubnet(f"invalid subnet {config.subnet}")
            configs.append(config)
            continue
        if unfit(subnet):
            raise NoSubnet(f"invalid subnet {subnet}: these addresses are not for containers")
        if overlapping(subnet, taken) is not None:
            raise NoSubnet("invalid pool request: Pool overlaps with other one on this address space")
        taken.append(subnet)
        configs.append(with_gateway(config, subnet))
    return tuple(configs)


def pool_subnet(cluster: Cluster | None, cursor: int, used: list[IPv4Network], nodes: Iterable[Node]) -> tuple[int, IPv4Network]:
    """The next subnet of the cluster's pools that overlaps no other network and holds no node's own address: (cursor, subnet).

    Raises NoSubnet.
    """
    pools = (cluster.default_addr_pool if cluster else ()) or (ADDRESS_POOL,)
    size = (cluster.subnet_size if cluster else 0) or SUBNET_SIZE
    taken = Taken(used, (address for node in nodes for address in (node.status.addr, node.manager_addr)))
    for after, subnet in pool_subnets(pools, size, cursor):
        if not taken.overlaps(subnet):
            return after, subnet
    raise NoSubnet("could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network")


def subnet_conflict(view: View, spec: NetworkSpec) -> str | None:
    """A sentence (Docker's where Docker has one) when the user's subnets cannot be had; None when the network may be stored.

    A subnet that another network asks for is taken, whether or not it was given yet; one with a node's own address in it would cut the
    node off.
    """
    others = list(view.all(Network))
    wanted = [
        subnet
        for network in others
        if network.driver == "overlay" and not network.ipam
        for config in asked(network.spec)
        if (subnet := subnet_of(config.subnet)) is not None
    ]
    try:
        configs = given_subnets(spec, subnets_in_use(others) + wanted)
    except NoSubnet as reason:
        return str(reason)
    for config in configs:
        subnet = subnet_of(config.subnet)
        for node in view.all(Node):
            for address in (node.status.addr, node.manager_addr):
                if subnet is not None and address and inside(address, subnet):
                    return f"subnet {config.subnet} holds the address {address} of node {node.hostname or node.id}"
    return None


def vni_conflict(view: View, spec: NetworkSpec) -> str | None:
    """The same for a VNI that the user asks for (`--opt com.docker.network.driver.overlay.vxlanid_list=N`)."""
    options = (spec.driver_configuration.options if spec.driver_configuration else None) or {}
    if OPTION not in options:
        return None
    vni = asked_vni(options)
    if vni is None:
        return f"invalid VXLAN id in {OPTION}: {options[OPTION]}: give one number from {FIRST_VNI} to {LAST_VNI}"
    for network in view.all(Network):
        theirs = (network.spec.driver_configuration.options if network.spec.driver_configuration else None) or {}
        if vni == (network.vni or asked_vni(theirs)):
            return f"VXLAN id {vni} is already in use by network {network.name} ({network.id})"
    return None
