"""The cluster object: its birth, its settings, its join tokens."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

import msgspec

from skep.clock import HOUR
from skep.errors import Invalid, NotImplementedHere, OutOfSequence
from skep.ids import Random, new_secret
from skep.manager.control_networks import ingress_network, predefined_networks
from skep.manager.control_services import in_sequence
from skep.manager.control_validate import invalid, quoted
from skep.model.cluster import Cluster, JoinTokens, RootCA
from skep.model.defaults import DATA_PATH_PORT, HEARTBEAT_PERIOD, HISTORY_LIMIT, NODE_CERT_EXPIRY, SUBNET_SIZE
from skep.model.enums import Availability, Membership, Role
from skep.model.labels import check_cluster_labels
from skep.model.node import Certificate, Node, NodeDescription, NodeStatus
from skep.model.spec import ClusterSpec, NodeSpec
from skep.plan.allocate import unfit
from skep.plan.ops import Change, Create, Op
from skep.plan.view import View

MIN_CERT_EXPIRY = HOUR


def join_token(digest: str, rng: Random) -> str:
    """`SWMTKN-1-<digest of the root>-<secret>`."""
    return f"SWMTKN-1-{digest}-{new_secret(rng)}"


def the_cluster(view: View) -> Cluster | None:
    return next(iter(view.all(Cluster)), None)


def bootstrap_cluster(
    view: View,
    *,
    cluster_id: str,
    node_id: str,
    root_ca: RootCA,
    rng: Random,
    spec: ClusterSpec | None = None,
    address: str = "",
    manager_addr: str = "",
    availability: str = "",
    description: NodeDescription | None = None,
    certificate: Certificate | None = None,
    default_addr_pool: Sequence[str] = (),
    subnet_size: int = 0,
    data_path_port: int = 0,
) -> list[Op]:
    """The first objects of a cluster: itself, this node as its manager, ingress and the networks that every node has.

    Ids are arguments because the node's certificate, made before, carries them. Raises Invalid: bad settings, or
    the store holds a cluster already.
    """
    if the_cluster(view) is not None:
        raise Invalid("the store holds a cluster already")
    spec = with_defaults(spec or ClusterSpec())
    check_cluster(spec)
    if (availability or "active") not in list(Availability):
        raise Invalid(f"invalid Availability: {quoted(availability)}")
    _check_pools(default_addr_pool, subnet_size)
    if data_path_port and not 1024 <= data_path_port <= 49151:
        raise Invalid(f"invalid data path port {data_path_port}: use a port between 1024 and 49151")
    cluster = Cluster(
        id=cluster_id,
        spec=spec,
        root_ca=root_ca,
        tokens=JoinTokens(worker=join_token(root_ca.digest, rng), manager=join_token(root_ca.digest, rng)),
        default_addr_pool=tuple(default_addr_pool),
        subnet_size=subnet_size or SUBNET_SIZE,
        data_path_port=data_path_port or DATA_PATH_PORT,
    )
    node = Node(
        id=node_id,
        spec=NodeSpec(role=Role.MANAGER.value, availability=availability or "active"),
        description=description,
        status=NodeStatus(addr=address),
        role=Role.MANAGER,
        membership=Membership.ACCEPTED,
        certificate=certificate,
        manager_addr=manager_addr,
    )
    networks = [ingress_network(rng), *predefined_networks()]
    return [Create(object, "the cluster was born") for object in (cluster, node, *networks)]


def update_cluster(
    current: Cluster, version: int, spec: ClusterSpec, rng: Random, *, rotate_worker_token: bool, rotate_manager_token: bool
) -> Change:
    spec = with_defaults(spec)
    check_cluster(spec, current.spec)
    if not in_sequence(version, current.spec_index, current.version):
        raise OutOfSequence
    fields: dict[str, object] = {"spec": spec}
    digest = current.root_ca.digest
    if rotate_worker_token or rotate_manager_token:
        fields["tokens"] = JoinTokens(
            worker=join_token(digest, rng) if rotate_worker_token else current.tokens.worker,
            manager=join_token(digest, rng) if rotate_manager_token else current.tokens.manager,
        )
    return Change(Cluster, current.id, fields, "updated by the user")


def with_defaults(spec: ClusterSpec) -> ClusterSpec:
    """What is not given (0, none) has its default, as Docker merges it."""
    orchestration, raft, dispatcher, ca = spec.orchestration, spec.raft, spec.dispatcher, spec.ca_config
    limit = orchestration.task_history_retention_limit
    replace = msgspec.structs.replace
    return replace(
        spec,
        name=spec.name or "default",
        orchestration=replace(orchestration, task_history_retention_limit=HISTORY_LIMIT if limit is None else limit),
        raft=replace(
            raft,
            snapshot_interval=raft.snapshot_interval or 10_000,
            keep_old_snapshots=raft.keep_old_snapshots or 0,
            log_entries_for_slow_followers=raft.log_entries_for_slow_followers or 500,
            election_tick=raft.election_tick or 10,
            heartbeat_tick=raft.heartbeat_tick or 1,
        ),
        dispatcher=replace(dispatcher, heartbeat_period=dispatcher.heartbeat_period or HEARTBEAT_PERIOD),
        ca_config=replace(ca, node_cert_expiry=ca.node_cert_expiry or NODE_CERT_EXPIRY),
    )


def check_cluster(spec: ClusterSpec, current: ClusterSpec | None = None) -> None:
    ca = spec.ca_config
    if spec.name != "default":
        raise Invalid('swarm spec must be named "default"')
    check_cluster_labels(spec.labels)
    if ca.node_cert_expiry < MIN_CERT_EXPIRY:
        raise invalid("minimum certificate expiry time is: 1h0m0s")
    if spec.dispatcher.heartbeat_period < 0:
        raise invalid("heartbeat time period cannot be a negative duration")
    if spec.encryption_config.auto_lock_managers:
        raise NotImplementedHere("skep has no autolock yet: switch it off")
    if ca.external_cas:
        raise NotImplementedHere("skep signs node certificates with its own CA; external CAs are not supported")
    if ca.signing_ca_cert or ca.signing_ca_key or ca.force_rotate > (current.ca_config.force_rotate if current else 0):
        raise NotImplementedHere("skep cannot rotate the cluster's CA yet")


def _check_pools(pools: Sequence[str], subnet_size: int) -> None:
    size = subnet_size or SUBNET_SIZE
    if not 1 <= size <= 29:
        raise Invalid(f"invalid subnet size {size}: use 1 to 29")
    for pool in pools:
        try:
            network = ip_network(pool)
        except ValueError as error:
            raise Invalid(f"invalid default address pool {pool}: {error}") from None
        if network.version != 4:
            raise Invalid(f"invalid default address pool {pool}: IPv4 only")
        if unfit(network):
            raise Invalid(f"invalid default address pool {pool}: these addresses are not for containers")
        if network.prefixlen > size:
            raise Invalid(f"invalid default address pool {pool}: it is smaller than its subnets (/{size})")
