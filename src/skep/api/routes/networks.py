"""`/networks…`: the cluster's networks (all of them on a manager, elsewhere those this node takes part in), then this node's own.

The list works on any node, and without a swarm. A driver of `overlay`, or scope swarm, means the cluster; anything else this node.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from aiohttp import web

from skep.api import networks
from skep.api.filters import Filters, has_label
from skep.api.localevents import message
from skep.api.query import cutoff, go_bool
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.wire import networks as wire
from skep.errors import Conflict, Forbidden, Invalid, NotFound, NotImplementedHere, SkepError, Unavailable
from skep.model.network import Network
from skep.model.spec import IPAMConfig
from skep.model.tables import NETWORK_BY_NAME, SERVICE_BY_NETWORK, TASK_BY_NETWORK
from skep.node.base import LocalNetwork
from skep.node.plain import Plain

ROUTES = Routes()
PREDEFINED = ("bridge", "host", "none")
NO_SWARM = 'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.'


def _passes(wanted: Filters, shown: dict[str, Any], in_use: bool, builtin: bool) -> bool:
    dangling = wanted.truth("dangling")
    return (
        wanted.exact("driver", shown["Driver"])
        and wanted.matches("id", shown["Id"])
        and wanted.matches("name", shown["Name"])
        and (wanted.matches("idOrName", shown["Name"]) or wanted.prefix("idOrName", shown["Id"]))
        and (wanted.exact("scope", shown["Scope"]) or (shown["Scope"] == "swarm" and wanted.exact("scope", "global")))
        and wanted.labels("label", shown["Labels"])
        and wanted.exact("type", "builtin" if builtin else "custom")
        and (dangling is None or dangling == (not in_use and not builtin))
    )


@ROUTES.add("GET", "/networks")
async def ls(call: Call) -> web.StreamResponse:
    wanted = call.filters("dangling", "driver", "id", "idOrName", "label", "name", "scope", "type")
    for value in wanted.get("type"):
        if value not in ("custom", "builtin"):
            raise Invalid(f"invalid filter 'type={value}'")
    look = wanted.truth("dangling") is not None
    cluster = networks.cluster_of(call)
    shown = []
    for network in networks.cluster_networks(call):
        used = look and (cluster is None or bool(cluster.view.find(TASK_BY_NETWORK, network.id)))
        if _passes(wanted, form := wire.engine_form(network), used, network.spec.ingress):
            shown.append(form)
    for local in call.context.networks.all():
        used = look and bool(call.context.networks.endpoints(local.id))
        if _passes(wanted, form := wire.local_form(local), used, local.predefined):
            shown.append(form)
    return answer(shown)


@ROUTES.add("GET", "/networks/{id*}")
async def inspect(call: Call) -> web.StreamResponse:
    verbose = go_bool(call.query, "verbose")
    found = await networks.find(call, call.path["id"], call.query.get("scope", ""))
    if isinstance(found, Network):
        return answer(networks.inspected(call, found, verbose))
    return answer(wire.local_form(found, networks.local_endpoints(call, found)))


# making


@ROUTES.add("POST", "/networks/create")
async def create(call: Call) -> web.StreamResponse:
    request = await call.body(wire.NetworkRequest)
    if not request.name.strip():
        raise Invalid("invalid name: name is empty")
    of_cluster = request.driver == "overlay" or request.scope in ("swarm", "global")
    cluster = networks.cluster_of(call)
    taken = {local.name for local in call.context.networks.all()} | {network.name for network in networks.cluster_networks(call)}
    if request.name == "default" or (request.name in PREDEFINED and cluster is None):
        raise Forbidden(f"operation is not permitted on predefined {request.name} network ")
    if of_cluster and cluster is None:
        _no_cluster(call)
    if request.name in taken or (cluster is not None and cluster.view.find(NETWORK_BY_NAME, request.name.lower())):
        raise Conflict(f"network with name {request.name} already exists")
    if request.enable_ipv4 is False and of_cluster:
        raise Invalid("IPv4 cannot be disabled in a Swarm scoped network")
    _check_ipam(request)
    id = await (_create_cluster(call, request) if of_cluster else _create_local(call, request))
    return answer({"Id": id, "Warning": ""}, 201)


def _no_cluster(call: Call) -> None:
    """Docker answers 403 here, and 503 only where the cluster itself is in trouble."""
    try:
        _ = call.cluster
    except Unavailable as error:
        if error.text.startswith("This node is not a swarm manager."):
            raise Forbidden(NO_SWARM) from None
        raise


async def _create_cluster(call: Call, request: wire.NetworkRequest) -> str:
    if request.driver == "overlay" and request.scope == "local":
        raise Invalid("overlay networks belong to the cluster: leave the scope out, or say swarm")
    if request.config_only:
        raise Invalid("configuration-only networks belong to a single node: leave the scope out")
    if request.config_from is not None and request.config_from.network:
        raise NotImplementedHere("skep's cluster networks take no configuration from a network of a node: give the options themselves")
    network = await call.cluster.create_network(wire.network_spec(request), driver=request.driver or "bridge")
    return network.id


async def _create_local(call: Call, request: wire.NetworkRequest) -> str:
    source = request.config_from.network if request.config_from is not None else ""
    driver = request.driver or "bridge"
    ipam = request.ipam
    if request.scope not in ("", "local"):
        raise Invalid(f"invalid scope: {request.scope}")
    if request.ingress:
        raise Invalid("the ingress network belongs to the cluster: create it with --driver overlay")
    if request.config_only and source:
        raise Forbidden("configuration network cannot depend on another configuration network")
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver != "bridge":
        raise NotImplementedHere(f"skep has no network driver {driver}: a node's own networks are bridges, the cluster's are overlays")
    if request.enable_ipv6:
        raise NotImplementedHere("skep's bridge networks carry IPv4 only: leave IPv6 out")
    if request.enable_ipv4 is False:
        raise NotImplementedHere("skep's bridge networks always carry IPv4")
    if ipam is not None and ipam.driver not in ("", "default"):
        raise NotImplementedHere(f"skep has no IPAM driver {ipam.driver}: use default")
    for config in (ipam.config if ipam is not None else None) or ():
        if ":" in config.subnet:
            raise NotImplementedHere(f"skep's bridge networks carry IPv4 only: leave the subnet {config.subnet} out")
    if source and (request.options or request.internal or (ipam is not None and ipam.config)):
        raise Forbidden("user specified configurations are not supported if the network depends on a configuration network")
    made = await call.context.networks.create(
        request.name,
        driver=driver,
        ipam=(ipam.config if ipam is not None else None) or (),
        ipam_options=ipam.options if ipam is not None else None,
        options=request.options,
        labels=request.labels,
        internal=request.internal,
        attachable=request.attachable,
        config_only=request.config_only,
        config_from=source,
    )
    if not made.config_only:
        tell(call, "create", made.id, made.name, made.driver)
    return made.id


def tell(call: Call, action: str, id: str, name: str, driver: str, **more: str) -> None:
    """An event of this node's."""
    call.context.events.publish(message("network", action, id, {"name": name, "type": driver, **more}, call.context.clock.now()))


def _check_ipam(request: wire.NetworkRequest) -> None:
    """In the engine's words. Raises Invalid with all that is wrong."""
    found = [fault for config in (request.ipam.config if request.ipam is not None else None) or () for fault in _faults(config)]
    if found:
        raise Invalid("invalid network config:\n" + "\n".join(found))


def _faults(config: IPAMConfig) -> Iterable[str]:
    try:
        subnet = ip_network(config.subnet, strict=False)
        if "/" not in config.subnet:
            raise ValueError
    except ValueError:
        yield f"invalid subnet {config.subnet}: invalid CIDR block notation"
        return
    if str(subnet) != config.subnet:
        yield f"invalid subnet {config.subnet}: it should be {subnet}"
    if config.ip_range:
        yield from _range_faults(config.ip_range, config)
    for what, text in (
        (f"gateway {config.gateway}", config.gateway),
        *((f"auxiliary address {text}", text) for text in (config.auxiliary_addresses or {}).values()),
    ):
        if not text and what == "gateway ":
            continue
        address = _address(text)
        if address is None:
            yield f"invalid {what}: invalid address"
        elif address.version != subnet.version:
            yield f"invalid {what}: parent subnet is an IPv{subnet.version} block"
        elif address not in subnet:
            yield f"invalid {what}: parent subnet {subnet} doesn't contain this address"


def _range_faults(text: str, config: IPAMConfig) -> Iterable[str]:
    subnet = ip_network(config.subnet, strict=False)
    try:
        part = ip_network(text, strict=False)
        if "/" not in text:
            raise ValueError
    except ValueError:
        yield f"invalid ip-range {text}: invalid CIDR block notation"
        return
    if part.version != subnet.version:
        yield f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"
        return
    if str(part) != text:
        yield f"invalid ip-range {text}: it should be {part}"
    if part.prefixlen < subnet.prefixlen:
        yield f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"
    elif part.network_address not in subnet:
        yield f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


# removing


async def _remove(call: Call, found: networks.Found) -> None:
    if isinstance(found, LocalNetwork):
        removed = await call.context.networks.remove(found.id)
        if not removed.config_only:
            tell(call, "destroy", removed.id, removed.name, removed.driver)
        return
    await call.cluster.remove_network(found.id)


@ROUTES.add("DELETE", "/networks/{id*}")
async def remove(call: Call) -> web.StreamResponse:
    await _remove(call, await networks.find(call, call.path["id"]))
    return nothing(204)


@ROUTES.add("POST", "/networks/prune")
async def prune(call: Call) -> web.StreamResponse:
    """Unused ones of both kinds; what somebody takes into use meanwhile stays."""
    wanted = call.filters("until", "label", "label!")
    before = cutoff(wanted.get("until"), call.context.clock.now())
    unused: list[networks.Found] = [
        local
        for local in call.context.networks.all()
        if not local.predefined and not local.config_only and not call.context.networks.endpoints(local.id)
    ]
    cluster = networks.cluster_of(call)
    if cluster is not None:
        unused += [
            network
            for network in networks.cluster_networks(call)
            if not network.spec.ingress
            and not cluster.view.find(SERVICE_BY_NETWORK, network.id)
            and not any(not task.terminal for task in cluster.view.find(TASK_BY_NETWORK, network.id))
        ]
    deleted = []
    for network in unused:
        labels = network.labels if isinstance(network, LocalNetwork) else network.spec.labels
        if (before and network.created_at >= before) or not wanted.labels("label", labels):
            continue
        if any(has_label(labels, label) for label in wanted.get("label!")):
            continue
        try:
            await _remove(call, network)
        except SkepError:
            continue
        deleted.append(network.name)
    call.context.events.publish(message("network", "prune", "", {"reclaimed": "0"}, call.context.clock.now()))
    return answer({"NetworksDeleted": deleted or None})


# containers


def _containers(call: Call) -> Plain:
    if call.context.plain is None:
        raise NotImplementedHere("here containers are the nodes of a cluster: they cannot be connected to networks or disconnected")
    return call.context.plain


@ROUTES.add("POST", "/networks/{id}/connect")
async def connect(call: Call) -> web.StreamResponse:
    request = await call.body(wire.ConnectRequest)
    plain = _containers(call)
    reference = call.path["id"]
    try:
        network = await networks.find(call, reference)
    except NotFound:
        await _hear_why_not(call, reference)
        raise
    if isinstance(network, Network) and not network.spec.attachable:
        reason = Forbidden(f"network {network.name} not manually attachable", rpc="PermissionDenied")
        raise Forbidden(f"Could not attach to network {network.name}: {reason.message}")
    await plain.connect(network.name, request.container, request.endpoint_config)
    return nothing()


async def _hear_why_not(call: Call, reference: str) -> None:
    """A worker is not told of a network that it may not attach to, unless somebody asks just that."""
    try:
        await call.context.attachments.find(reference, joining=True)
    except Forbidden as error:
        raise Forbidden(f"Could not attach to network {reference}: {error.message}") from None


@ROUTES.add("POST", "/networks/{id}/disconnect")
async def disconnect(call: Call) -> web.StreamResponse:
    """By force also from a network that is gone."""
    request = await call.body(wire.DisconnectRequest)
    plain, reference = _containers(call), call.path["id"]
    try:
        reference = (await networks.find(call, reference)).name
    except NotFound:
        if not request.force:
            raise
    await plain.disconnect(reference, request.container)
    return nothing()
