"""`/swarm…`: this node's membership, and the cluster's own settings."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from skep.api.context import InitRequest, JoinRequest
from skep.api.query import go_bool, loose_bool, version
from skep.api.routing import Call, Routes, answer, nothing
from skep.api.wire.cluster import cluster
from skep.errors import Conflict, Invalid, NotImplementedHere, Unavailable
from skep.model.base import Spec
from skep.model.spec import ClusterSpec

ROUTES = Routes()
NO_AUTOLOCK = "skep does not lock managers: the state's key would have to be typed at each start; protect the data directory instead"


class InitBody(Spec, frozen=True, kw_only=True):
    """Docker's body; absent means empty, the daemon fills in its defaults."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    force_new_cluster: bool = False
    auto_lock_managers: bool = False
    availability: str = ""
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0
    spec: ClusterSpec = ClusterSpec()


class JoinBody(Spec, frozen=True, kw_only=True):
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    availability: str = ""


def _check_place(availability: str, advertise: str, data_path: str) -> None:
    if availability not in ("", "active", "pause", "drain"):
        raise Invalid(f'invalid Availability: "{availability}"')
    for text, sentence in (
        (advertise, "advertise address must be a non-zero IP address or network interface (with optional port number)"),
        (data_path, "data path address must be a non-zero IP address or network interface"),
    ):
        host = text.rpartition(":")[0] if text.count(":") == 1 else text.strip("[]")
        try:
            zero = ipaddress.ip_address(host).is_unspecified
        except ValueError:
            continue
        if zero:
            raise Invalid(sentence)


def _check_pools(body: InitBody) -> None:
    pools = []
    for text in body.default_addr_pool:
        try:
            pools.append(ipaddress.ip_network(text))
        except ValueError:
            raise Invalid(f"invalid default address pool {text}: it must be a subnet such as 10.20.0.0/16") from None
    for index, pool in enumerate(pools):
        if pool.version == 4 and body.subnet_size and not pool.prefixlen <= body.subnet_size <= 29:
            raise Invalid(f"invalid subnet size {body.subnet_size}: it must lie between the pool's /{pool.prefixlen} and 29")
        if any(pool.version == other.version and pool.overlaps(other) for other in pools[:index]):
            raise Invalid(f"default address pool {pool} overlaps another one")


@ROUTES.add("POST", "/swarm/init")
async def init(call: Call) -> web.StreamResponse:
    body = await call.body(InitBody)
    if call.context.swarm.info().state in ("inactive", "error"):
        _check_place(body.availability, body.advertise_addr, body.data_path_addr)
        _check_pools(body)
        if body.data_path_port and not 1024 <= body.data_path_port <= 49151:
            raise Invalid(f"invalid data path port number {body.data_path_port}: it must be between 1024 and 49151")
        if body.auto_lock_managers or body.spec.encryption_config.auto_lock_managers:
            raise NotImplementedHere(NO_AUTOLOCK)
    request = InitRequest(
        listen_addr=body.listen_addr,
        advertise_addr=body.advertise_addr,
        data_path_addr=body.data_path_addr,
        data_path_port=body.data_path_port,
        force_new_cluster=body.force_new_cluster,
        availability=body.availability,
        default_addr_pool=body.default_addr_pool,
        subnet_size=body.subnet_size,
        spec=body.spec,
    )
    node_id = await call.state.finish(call.context.swarm.init(request))
    call.state.cluster_changed.set()
    return answer(node_id)


@ROUTES.add("POST", "/swarm/join")
async def join(call: Call) -> web.StreamResponse:
    body = await call.body(JoinBody)
    if call.context.swarm.info().state in ("inactive", "error"):
        _check_place(body.availability, body.advertise_addr, body.data_path_addr)
        if not body.remote_addrs or not all(body.remote_addrs):
            raise Invalid("at least 1 RemoteAddr is required to join")
    request = JoinRequest(
        listen_addr=body.listen_addr,
        advertise_addr=body.advertise_addr,
        data_path_addr=body.data_path_addr,
        remote_addrs=body.remote_addrs,
        token=body.join_token,
        availability=body.availability,
    )
    await call.state.finish(call.context.swarm.join(request))
    call.state.cluster_changed.set()
    return nothing()


@ROUTES.add("POST", "/swarm/leave")
async def leave(call: Call) -> web.StreamResponse:
    await call.state.finish(call.context.swarm.leave(loose_bool(call.query, "force")))
    call.state.cluster_changed.set()
    return nothing()


@ROUTES.add("GET", "/swarm")
async def inspect(call: Call) -> web.StreamResponse:
    return answer(cluster(call.cluster.cluster(), tokens=True))


@ROUTES.add("POST", "/swarm/update")
async def update(call: Call) -> web.StreamResponse:
    spec = await call.body(ClusterSpec)
    number = version(call.query, "swarm")
    worker = go_bool(call.query, "rotateWorkerToken", reason=False)
    manager = go_bool(call.query, "rotateManagerToken", reason=False)
    if go_bool(call.query, "rotateManagerUnlockKey", reason=False) or spec.encryption_config.auto_lock_managers:
        _ = call.cluster
        raise NotImplementedHere(NO_AUTOLOCK)
    await call.cluster.update_cluster(number, spec, rotate_worker_token=worker, rotate_manager_token=manager)
    return nothing()


@ROUTES.add("GET", "/swarm/unlockkey")
async def unlock_key(call: Call) -> web.StreamResponse:
    _ = call.cluster
    return answer({"UnlockKey": ""})


@ROUTES.add("POST", "/swarm/unlock")
async def unlock(call: Call) -> web.StreamResponse:
    await call.body(dict)
    if call.context.swarm.info().state == "inactive":
        raise Unavailable("This node is not part of a swarm")
    raise Conflict("swarm is not locked")
