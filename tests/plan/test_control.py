"""What users may ask, and the exact words when they may not (Docker's, where Docker has them)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from skep.clock import DAY, HOUR, SECOND
from skep.errors import Invalid, NotFound, NotImplementedHere, OutOfSequence, SkepError, Unavailable
from skep.link.messages import LogLine
from skep.manager.control import Control, LogOptions, bootstrap_cluster
from skep.manager.control_validate import image_reference
from skep.model.cluster import Cluster, RootCA
from skep.model.enums import NodeState, TaskState, UpdateState
from skep.model.labels import NAMED
from skep.model.network import Network
from skep.model.node import Certificate, Node, NodeDescription, NodeStatus
from skep.model.service import Endpoint, Service, UpdateStatus
from skep.model.spec import ClusterSpec, Driver, IPAMConfig, IPAMOptions, NetworkSpec, NodeSpec, PortConfig, ServiceSpec
from skep.model.task import Attachment, Task, TaskStatus
from skep.plan.allocate import plan_allocate
from skep.plan.ops import Change, Create
from skep.plan.ownership import refuse
from skep.store.memory import MemoryBackend, MemoryStore

DIGEST = "d" * 50


class Clock:
    def __init__(self) -> None:
        self.time = 1_000 * SECOND

    def now(self) -> int:
        return self.time

    async def sleep(self, ns: int) -> None:
        raise NotImplementedError


def new_control(**settings: Any) -> Control:
    clock = Clock()
    store = MemoryStore(MemoryBackend(), clock, refuse)
    rng = random.Random(3)
    ops = bootstrap_cluster(
        store, cluster_id="thecluster", node_id="thenode", root_ca=RootCA(digest=DIGEST), rng=rng, address="10.1.0.1", **settings
    )
    store.apply(ops, by="control")
    return Control(store, clock, rng, "thenode")


@pytest.fixture
def control() -> Control:
    return new_control()


def store_of(control: Control) -> MemoryStore:
    assert isinstance(control.view, MemoryStore)
    return control.view


def spec(text: str = "{}", name: str = "web", image: str = "nginx:1") -> ServiceSpec:
    """From Docker's JSON, as a client sends it."""
    given = msgspec.json.decode(text)
    template = given.setdefault("TaskTemplate", {})
    template.setdefault("ContainerSpec", {}).setdefault("Image", image)
    return msgspec.convert({"Name": name, **given}, ServiceSpec)


def create(control: Control, wanted: ServiceSpec, **extra: Any) -> Service:
    return asyncio.run(control.create_service(wanted, **extra))[0]


def update(control: Control, wanted: ServiceSpec, version: int | None = None, **extra: Any) -> Service:
    current = control.service("web")
    asyncio.run(control.update_service("web", current.version if version is None else version, wanted, **extra))
    return control.service("web")


def add(control: Control, *objects: Any) -> None:
    store_of(control).apply([Create(object, "t") for object in objects])


# creating services


def test_a_bare_spec_becomes_a_whole_one(control: Control) -> None:
    service = create(control, spec(name=""))
    assert service.spec.name.count("_") == 1
    assert service.spec.mode.replicated is not None
    assert service.spec.mode.replicated.replicas == 1
    assert service.spec.endpoint_spec is None
    assert service.spec_version == service.version == service.spec_index
    assert service.update_status is None
    assert len(service.id) == 25
    assert store_of(control).durable_version == service.version


def test_a_service_that_nobody_names_gets_a_free_name(control: Control) -> None:
    names = {create(control, spec(name="")).spec.name for _ in range(50)}
    assert len(names) == 50


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ('{"Mode":{}}', '{"Mode":{"Replicated":{"Replicas":1}}}'),
        ('{"Mode":{"Replicated":{}}}', '{"Mode":{"Replicated":{"Replicas":1}}}'),
        ('{"Mode":{"Replicated":{"Replicas":0}}}', '{"Mode":{"Replicated":{"Replicas":0}}}'),
        ('{"Mode":{"Global":{}}}', '{"Mode":{"Global":{}}}'),
        ('{"EndpointSpec":{}}', '{"EndpointSpec":{"Mode":"vip"}}'),
        (
            '{"EndpointSpec":{"Ports":[{"TargetPort":80}]}}',
            '{"EndpointSpec":{"Mode":"vip","Ports":[{"TargetPort":80,"Protocol":"tcp","PublishMode":"ingress"}]}}',
        ),
        ('{"UpdateConfig":{"Parallelism":0}}', '{"UpdateConfig":{"Parallelism":0,"FailureAction":"pause","Order":"stop-first"}}'),
        ('{"RollbackConfig":{}}', '{"RollbackConfig":{"Parallelism":0,"FailureAction":"pause","Order":"stop-first"}}'),
        ('{"TaskTemplate":{"RestartPolicy":{}}}', '{"TaskTemplate":{"RestartPolicy":{"Condition":"any","MaxAttempts":0}}}'),
        ('{"TaskTemplate":{"Runtime":"container","ContainerSpec":{"Isolation":"default"}}}', "{}"),
        ('{"TaskTemplate":{"ContainerSpec":{"Env":[],"Labels":{},"Mounts":[],"Command":[]},"Networks":[]},"Networks":[]}', "{}"),
        ('{"TaskTemplate":{"ContainerSpec":{"DNSConfig":{"Nameservers":[]}}}}', '{"TaskTemplate":{"ContainerSpec":{"DNSConfig":{}}}}'),
        ('{"TaskTemplate":{"Placement":{"Constraints":[]}}}', '{"TaskTemplate":{"Placement":{}}}'),
        ('{"Labels":{"b":"1","a":"2"}}', '{"Labels":{"b":"1","a":"2"}}'),
    ],
)
def test_specs_are_stored_in_one_form(control: Control, sent: str, stored: str) -> None:
    wanted = spec(stored)
    if wanted.mode.replicated is None and wanted.mode.global_ is None:
        wanted = msgspec.structs.replace(wanted, mode=spec('{"Mode":{"Replicated":{"Replicas":1}}}').mode)
    created = create(control, spec(sent))
    assert created.spec == wanted
    assert update(control, created.spec).spec_version == created.spec_version, "sent back, it is the same"


def test_networks_may_be_named(control: Control) -> None:
    host = control.network("host")
    service = create(control, spec('{"TaskTemplate":{"Networks":[{"Target":"host"}]}}'))
    assert [n.target for n in service.spec.task_template.networks or ()] == [host.id]
    old = create(control, spec('{"Networks":[{"Target":"%s"}]}' % host.id[:7], name="old"))  # noqa: UP031
    assert [n.target for n in old.spec.networks or ()] == [host.id]


GOOD_CONSTRAINT = '{"TaskTemplate":{"Placement":{"Constraints":["node.role == manager","node.labels.x!=y"]}}}'


@pytest.mark.parametrize(
    "text", [GOOD_CONSTRAINT, '{"TaskTemplate":{"ContainerSpec":{"Image":"host:5000/a/b:tag@sha256:%s"}}}' % ("a" * 64)]
)  # noqa: UP031
def test_good_specs(control: Control, text: str) -> None:
    create(control, spec(text))


IN = "rpc error: code = InvalidArgument desc = "
REFUSED: list[tuple[str, int, str]] = [
    ('{"Name":"we b"}', 400, IN + "name must be valid as a DNS name component"),
    ('{"Name":"-web"}', 400, IN + "name must be valid as a DNS name component"),
    ('{"Name":"wéb"}', 400, IN + "name must be valid as a DNS name component"),
    ('{"Name":"%s"}' % ("a" * 64), 400, IN + "name must be 63 characters or fewer"),  # noqa: UP031
    ('{"TaskTemplate":{"ContainerSpec":{"Image":""}}}', 400, IN + "ContainerSpec: image reference must be provided"),
    ('{"TaskTemplate":{"ContainerSpec":{"Image":"UPPER"}}}', 400, IN + 'ContainerSpec: "UPPER" is not a valid repository/tag'),
    ('{"TaskTemplate":{"ContainerSpec":null}}', 400, "mismatched Runtime and *Spec fields"),
    ('{"TaskTemplate":{"Runtime":"wasm"}}', 400, "unsupported runtime"),
    ('{"TaskTemplate":{"Runtime":"plugin"}}', 501, "skep does not run plugins as services"),
    ('{"TaskTemplate":{"RestartPolicy":{"Condition":"bogus"}}}', 400, 'invalid RestartCondition: "bogus"'),
    ('{"TaskTemplate":{"RestartPolicy":{"Delay":-1}}}', 400, IN + "TaskSpec: restart-delay cannot be negative"),
    ('{"TaskTemplate":{"RestartPolicy":{"Window":-1}}}', 400, IN + "TaskSpec: restart-window cannot be negative"),
    (
        '{"TaskTemplate":{"Placement":{"Constraints":["node.role=manager"]}}}',
        500,
        "rpc error: code = Unknown desc = constraint expected one operator from ==, !=",
    ),
    ('{"TaskTemplate":{"Resources":{"Limits":{"NanoCPUs":100}}}}', 400, IN + "invalid cpu value 1e-07: Must be at least 0.001"),
    ('{"TaskTemplate":{"Resources":{"Reservations":{"MemoryBytes":4000}}}}', 400, IN + "invalid memory value 4000: Must be at least 4MiB"),
    (
        '{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Type":"tmpfs","Target":"/x"},{"Type":"volume","Target":"/x"}]}}}',
        400,
        IN + "ContainerSpec: duplicate mount point: /x",
    ),
    ('{"TaskTemplate":{"ContainerSpec":{"Mounts":[{"Type":"floppy","Target":"/x"}]}}}', 400, 'invalid MountType: "floppy"'),
    (
        '{"TaskTemplate":{"ContainerSpec":{"Healthcheck":{"Interval":1000}}}}',
        400,
        IN + "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
    ),
    ('{"UpdateConfig":{"Delay":-1}}', 400, IN + "TaskSpec: update-delay cannot be negative"),
    ('{"UpdateConfig":{"Monitor":-1}}', 400, IN + "TaskSpec: update-monitor cannot be negative"),
    ('{"UpdateConfig":{"MaxFailureRatio":1.5}}', 400, IN + "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
    ('{"UpdateConfig":{"FailureAction":"panic"}}', 400, "unrecognized update failure action panic"),
    ('{"UpdateConfig":{"Order":"random"}}', 400, "unrecognized update order random"),
    ('{"EndpointSpec":{"Mode":"magic"}}', 400, 'invalid resolution mode: "magic"'),
    (
        '{"EndpointSpec":{"Mode":"dnsrr","Ports":[{"TargetPort":80}]}}',
        400,
        IN + "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    (
        '{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080},{"TargetPort":81,"PublishedPort":8080}]}}',
        400,
        IN + "EndpointSpec: duplicate published ports provided",
    ),
    ('{"EndpointSpec":{"Ports":[{"TargetPort":0}]}}', 400, IN + "EndpointSpec: invalid target port 0"),
    ('{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":70000}]}}', 400, IN + "EndpointSpec: invalid published port 70000"),
    ('{"EndpointSpec":{"Ports":[{"TargetPort":80,"Protocol":"icmp"}]}}', 400, IN + 'EndpointSpec: invalid protocol "icmp"'),
    ('{"Mode":{"Replicated":{"Replicas":-1}}}', 400, IN + "Number of replicas must be non-negative"),
    ('{"Mode":{"Replicated":{"Replicas":1000001}}}', 400, IN + "Number of replicas must be at most 1000000"),
    (
        '{"Mode":{"ReplicatedJob":{}}}',
        501,
        'skep does not run jobs yet: use a replicated or global service with restart condition "none"',
    ),
    ('{"Mode":{"GlobalJob":{}},"UpdateConfig":{}}', 400, IN + "Jobs may not have an update config"),
    (
        '{"TaskTemplate":{"ContainerSpec":{"Secrets":[{"SecretID":"x","SecretName":"x"}]}}}',
        501,
        "skep does not keep secrets yet: take them out of the service",
    ),
    (
        '{"Labels":{"skep.ingres":"1"}}',
        400,
        IN + f'skep knows no label "skep.ingres": the known ones are {NAMED}',
    ),
    ('{"TaskTemplate":{"Networks":[{"Target":"nowhere"}]}}', 404, "network nowhere not found"),
    (
        '{"TaskTemplate":{"Networks":[{"Target":"ingress"}]}}',
        400,
        IN + 'Service cannot be explicitly attached to the ingress network "ingress"',
    ),
    (
        '{"TaskTemplate":{"Networks":[{"Target":"none"}]}}',
        403,
        "The network none cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the"
        " overlay driver.",
    ),
]


@pytest.mark.parametrize(("text", "status", "message"), REFUSED)
def test_what_is_refused_and_how(control: Control, text: str, status: int, message: str) -> None:
    given = msgspec.json.decode(text)
    if "ContainerSpec" in given.get("TaskTemplate", {}) and given["TaskTemplate"]["ContainerSpec"] is None:
        wanted = msgspec.convert({"Name": "web", **given}, ServiceSpec)
    elif given.get("TaskTemplate", {}).get("ContainerSpec", {}).get("Image") == "":
        wanted = spec(text, image="")
    else:
        wanted = spec(text)
    with pytest.raises(SkepError) as caught:
        create(control, wanted)
    assert (caught.value.message, caught.value.status) == (message, status)
    assert not control.view.all(Service)
    create(control, spec())
    with pytest.raises(SkepError) as caught:
        update(control, wanted)
    assert (caught.value.message, caught.value.status) == (message, status)


@pytest.mark.parametrize(
    "reference", ["a", "a:1", "a/b", "library/a", "localhost/a", "r.io:5000/a/b:x", "a@sha256:" + "0" * 64, "x/a__b-c.d", "[::1]:5000/a"]
)
def test_image_names(reference: str) -> None:
    assert image_reference(reference)


@pytest.mark.parametrize(
    "reference", ["", "A", "a b", "a:", ":1", "a@sha256:12", "a//b", "-a", "a/", "/a", "f" * 64, "a:" + "x" * 129, "a\n", "exa_mple.com/a"]
)
def test_no_image_names(reference: str) -> None:
    assert not image_reference(reference)


def test_a_name_is_taken_whatever_its_case(control: Control) -> None:
    create(control, spec())
    with pytest.raises(SkepError) as caught:
        create(control, spec(name="WEB"))
    assert caught.value.status == 409
    assert (
        caught.value.message == "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service WEB already exists"
    )


def port(published: int, mode: str = "ingress", protocol: str = "tcp") -> str:
    return '{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":%d,"PublishMode":"%s","Protocol":"%s"}]}}' % (  # noqa: UP031
        published,
        mode,
        protocol,
    )


@pytest.mark.parametrize(
    ("first", "second", "form"),
    [
        (port(80), port(80), "an ingress port"),
        (port(80, "host"), port(80), "a host-published port"),
        (port(80), port(80, "host"), "an ingress port"),
        (port(80, "host"), port(80, "host"), None),
        (port(80), port(80, protocol="udp"), None),
        (port(0), port(0), None),
    ],
)
def test_ports_of_two_services(control: Control, first: str, second: str, form: str | None) -> None:
    one = create(control, spec(first))
    if form is None:
        create(control, spec(second, name="other"))
        return
    message = f"{IN}port '80' is already in use by service 'web' ({one.id}) as {form}"
    with pytest.raises(Invalid) as caught:
        create(control, spec(second, name="other"))
    assert caught.value.message == message
    create(control, spec(name="other"))
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.update_service("other", control.service("other").version, spec(second, name="other")))
    assert caught.value.message == message
    update(control, spec(first))


def test_a_port_that_was_given_is_taken_too(control: Control) -> None:
    one = create(control, spec(port(0)))
    given = Endpoint(ports=(PortConfig(protocol="tcp", target_port=80, published_port=30000, publish_mode="ingress"),))
    store_of(control).apply([Change(Service, one.id, {"endpoint": given}, "t")], by="allocator")
    with pytest.raises(Invalid, match="port '30000' is already in use by service 'web'"):
        create(control, spec(port(30000), name="other"))


def test_the_cluster_s_own_ports_are_not_published(control: Control) -> None:
    """What comes in by them would be led to tasks, and the nodes would lose one another."""
    add(control, Node(id="manager", spec=NodeSpec(), manager_addr="192.0.2.1:2377"))
    for number, protocol in ((4789, "udp"), (2377, "tcp")):
        with pytest.raises(Invalid) as caught:
            create(control, spec(port(number, protocol=protocol)))
        text = f"{IN}port '{number}' is already in use by the cluster itself ({protocol}): its nodes would lose one another"
        assert caught.value.message == text
    create(control, spec(port(4789)))
    create(control, spec(port(2377, protocol="udp"), name="second"))
    create(control, spec(port(4789, "host", protocol="udp"), name="third"))


def test_without_ingress_no_published_port(control: Control) -> None:
    asyncio.run(control.remove_network("ingress"))
    with pytest.raises(Invalid) as caught:
        create(control, spec(port(80)))
    assert caught.value.message == (
        "rpc error: code = FailedPrecondition desc = service needs ingress network, but no ingress network is present"
    )
    create(control, spec(port(80, "host")))


# updating


def test_sequence(control: Control) -> None:
    """A user's update fails when another user's came between, and never because of what the cluster itself wrote."""
    service = create(control, spec())
    other = create(control, spec(name="other"))
    store_of(control).apply([Change(Service, service.id, {"update_status": UpdateStatus(state=UpdateState.UPDATING)}, "t")], by="services")
    updated = update(control, spec('{"Labels":{"a":"b"}}'), service.version)
    assert updated.version > other.version
    for stale in (service.version, updated.version + 1, 0):
        with pytest.raises(OutOfSequence) as caught:
            update(control, spec('{"Labels":{"c":"d"}}'), stale)
        assert (caught.value.status, caught.value.message) == (500, "rpc error: code = Unknown desc = update out of sequence")
    assert control.service("web") == updated


def test_what_replaces_tasks_and_what_does_not(control: Control) -> None:
    v1 = create(control, spec('{"Mode":{"Replicated":{"Replicas":2}}}'))
    status = UpdateStatus(state=UpdateState.COMPLETED)
    store_of(control).apply([Change(Service, v1.id, {"update_status": status}, "t")], by="services")
    scaled = update(control, spec('{"Mode":{"Replicated":{"Replicas":5}},"Labels":{"x":"y"},"UpdateConfig":{"Parallelism":2}}'))
    assert scaled.spec_version == v1.spec_version
    assert scaled.previous_spec == v1.spec
    assert scaled.update_status is None, "every update clears it"
    forced = update(control, spec('{"TaskTemplate":{"ForceUpdate":1}}'))
    assert forced.spec_version == forced.version > scaled.spec_version
    published = update(control, spec('{"TaskTemplate":{"ForceUpdate":1},"EndpointSpec":{"Ports":[{"TargetPort":1}]}}'))
    assert published.spec_version == published.version
    assert published.previous_spec_version == forced.spec_version


def test_rollback_and_back_again(control: Control) -> None:
    first = create(control, spec(image="app:1"), registry_auth="auth1")
    with pytest.raises(Invalid) as caught:
        update(control, spec(image="app:9"), rollback="previous")
    assert caught.value.message == f"rpc error: code = FailedPrecondition desc = service {first.id} does not have a previous spec"
    second = update(control, spec(image="app:2"), registry_auth="auth2")
    back = update(control, spec(image="app:9"), rollback="previous")
    assert (back.spec, back.spec_version, back.registry_auth) == (first.spec, first.spec_version, "auth1")
    assert (back.previous_spec, back.previous_spec_version) == (second.spec, second.spec_version)
    assert back.update_status == UpdateStatus(
        state=UpdateState.ROLLBACK_STARTED, started_at=1_000 * SECOND, message="manually requested rollback"
    )
    again = update(control, spec(image="app:9"), rollback="previous")
    assert (again.spec, again.registry_auth) == (second.spec, "auth2")


def test_a_rollback_to_what_cannot_be_had_any_more_is_refused_and_changes_nothing(control: Control) -> None:
    network = asyncio.run(control.create_network(NetworkSpec(name="ov", scope="swarm"), driver="overlay"))
    ports = '{"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8400}]}}'
    create(control, spec(f'{{"TaskTemplate":{{"Networks":[{{"Target":"{network.id}"}}]}}}}'))
    update(control, spec())
    asyncio.run(control.remove_network("ov"))
    with pytest.raises(SkepError) as caught:
        update(control, spec(), rollback="previous")
    assert (caught.value.status, caught.value.message) == (404, f"network {network.id} not found")
    update(control, spec(ports))
    now = update(control, spec())
    other = create(control, spec(ports, name="other"))
    with pytest.raises(Invalid) as taken:
        update(control, spec(), rollback="previous")
    assert taken.value.message == IN + f"port '8400' is already in use by service 'other' ({other.id}) as an ingress port"
    assert control.service(now.id) == now


def test_registry_auth(control: Control) -> None:
    create(control, spec(), registry_auth="one")
    with pytest.raises(SkepError, match="service does not have a previous spec"):
        update(control, spec(), registry_auth_from="previous-spec")
    assert update(control, spec('{"Labels":{"n":"1"}}')).registry_auth == "one"
    assert update(control, spec('{"Labels":{"n":"2"}}'), registry_auth="two").registry_auth == "two"
    assert update(control, spec('{"Labels":{"n":"3"}}'), registry_auth_from="previous-spec").registry_auth == "one"
    assert update(control, spec('{"Labels":{"n":"4"}}'), registry_auth_from="spec").registry_auth == "one"
    with pytest.raises(SkepError) as caught:
        update(control, spec(), registry_auth_from="elsewhere")
    assert (caught.value.status, caught.value.message) == (500, "unsupported registryAuthFrom value")


@pytest.mark.parametrize(
    ("wanted", "extra", "status", "message"),
    [
        (spec(name="other"), {}, 501, "rpc error: code = Unimplemented desc = renaming services is not supported"),
        (spec('{"Mode":{"Global":{}}}'), {}, 501, "rpc error: code = Unimplemented desc = service mode change is not allowed"),
        (spec(), {"rollback": "x"}, 500, "unrecognized rollback option x"),
    ],
)
def test_updates_refused(control: Control, wanted: ServiceSpec, extra: dict[str, str], status: int, message: str) -> None:
    create(control, spec())
    with pytest.raises(SkepError) as caught:
        update(control, wanted, **extra)
    assert (caught.value.status, caught.value.message) == (status, message)


def test_removing(control: Control) -> None:
    service = create(control, spec())
    asyncio.run(control.remove_service("web"))
    with pytest.raises(NotFound, match="service web not found"):
        asyncio.run(control.remove_service("web"))
    assert control.view.get(Service, service.id) is None


# finding


def test_id_then_name_then_prefix(control: Control) -> None:
    add(
        control,
        Service(id="abc", spec=ServiceSpec(name="first")),
        Service(id="abd", spec=ServiceSpec(name="abc")),
        Service(id="xyz", spec=ServiceSpec(name="ab")),
    )
    assert control.service("abc").id == "abc"
    assert control.service("ab").id == "xyz"
    assert control.service("AB").id == "xyz"
    assert control.service("x").id == "xyz"
    with pytest.raises(Invalid) as caught:
        control.service("a")
    assert (caught.value.status, caught.value.message) == (400, "service a is ambiguous (2 matches found)")
    for kind, look in {"service": control.service, "node": control.node, "task": control.task, "network": control.network}.items():
        for missing in ("nothing", ""):
            with pytest.raises(NotFound) as lost:
                look(missing)
            assert lost.value.message == f"{kind} {missing} not found"


def test_nodes_by_host_name_and_tasks_by_their_long_name(control: Control) -> None:
    twin = NodeDescription(hostname="Twin")
    add(
        control,
        Node(id="n1", spec=NodeSpec(), description=NodeDescription(hostname="alpha")),
        Node(id="n2", spec=NodeSpec(), description=twin),
        Node(id="n3", spec=NodeSpec(), description=twin),
        Task(id="t1", service_id="s", service_name="web", slot=2),
    )
    assert control.node("ALPHA").id == "n1"
    with pytest.raises(Invalid, match=r"node twin is ambiguous \(2 matches found\)"):
        control.node("twin")
    assert control.task("web.2.t1").id == "t1"
    with pytest.raises(NotFound):
        control.task("web.1.t1")


# nodes


def worker(state: NodeState = NodeState.READY, **fields: Any) -> Node:
    return Node(id="w1", spec=NodeSpec(role="worker", availability="active"), status=NodeStatus(state=state), **fields)


def test_update_node(control: Control) -> None:
    add(control, worker())
    node = control.node("w1")
    store_of(control).apply([Change(Node, "w1", {"applied_version": 3}, "t")], by="dispatcher")
    asyncio.run(control.update_node("w1", node.version, NodeSpec(role="worker", availability="drain", labels={"a": "b"})))
    assert control.node("w1").spec.availability == "drain"
    with pytest.raises(OutOfSequence):
        asyncio.run(control.update_node("w1", node.version, NodeSpec(role="worker", availability="active")))


@pytest.mark.parametrize(
    ("node", "wanted", "version", "message"),
    [
        ("w1", NodeSpec(role="boss", availability="active"), 0, 'invalid Role: "boss"'),
        ("w1", NodeSpec(role="worker", availability=".."), 0, 'invalid Availability: ".."'),
        (
            "thenode",
            NodeSpec(role="worker", availability="active"),
            0,
            "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm",
        ),
        (
            "w1",
            NodeSpec(role="manager", availability="active"),
            None,
            "a node cannot be promoted yet: skep keeps its state on one manager until it has a store for several",
        ),
        ("w1", NodeSpec(role="manager", availability="active"), 0, "rpc error: code = Unknown desc = update out of sequence"),
    ],
)
def test_node_updates_refused(control: Control, node: str, wanted: NodeSpec, version: int | None, message: str) -> None:
    add(control, worker())
    with pytest.raises(SkepError) as caught:
        asyncio.run(control.update_node(node, control.node(node).version if version is None else version, wanted))
    assert caught.value.message == message


def test_remove_node(control: Control) -> None:
    now = 1_000 * SECOND
    add(control, worker(certificate=Certificate(serial="5f", not_after=now + DAY)))
    for forced in (False, True):
        with pytest.raises(Invalid) as caught:
            asyncio.run(control.remove_node("thenode", forced))
        assert caught.value.message == (
            "rpc error: code = FailedPrecondition desc = node thenode is a cluster manager and is a member of the raft cluster."
            " It must be demoted to worker before removal"
        )
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.remove_node("w1", False))
    assert caught.value.message == "rpc error: code = FailedPrecondition desc = node w1 is not down and can't be removed"
    asyncio.run(control.remove_node("w1", True))
    assert control.view.get(Node, "w1") is None
    assert [(r.serial, r.until) for r in control.cluster().revoked] == [("5f", now + DAY)]
    add(control, worker(NodeState.DOWN))
    asyncio.run(control.remove_node("w1", False))
    assert control.view.get(Node, "w1") is None


# networks

MTU = "com.docker.network.driver.mtu"
VXLAN = "com.docker.network.driver.overlay.vxlanid_list"


def subnets(*texts: str, name: str = "x") -> NetworkSpec:
    return NetworkSpec(name=name, ipam_options=IPAMOptions(configs=tuple(IPAMConfig(subnet=text) for text in texts)))


def allocate(control: Control) -> None:
    store = store_of(control)
    store.apply(plan_allocate(store, 2_000 * SECOND).ops, by="allocator")


def driven(**options: str) -> NetworkSpec:
    return NetworkSpec(name="x", driver_configuration=Driver(name="overlay", options=options))


@pytest.mark.parametrize(
    ("wanted", "driver", "status", "message"),
    [
        (NetworkSpec(name="bridge"), "", 403, "bridge is a pre-defined network and cannot be created"),
        (NetworkSpec(name="default"), "", 403, "default is a pre-defined network and cannot be created"),
        (NetworkSpec(name="a b"), "", 400, IN + "name must be valid as a DNS name component"),
        (NetworkSpec(name="INGRESS"), "", 409, "network with name INGRESS already exists"),
        (
            NetworkSpec(name="other", ingress=True),
            "",
            409,
            "rpc error: code = AlreadyExists desc = ingress network (ID) is already present",
        ),
        (NetworkSpec(name="x", ingress=True, attachable=True), "", 400, IN + "ingress network cannot be attachable"),
        (NetworkSpec(name="x", ingress=True, internal=True), "", 400, IN + "ingress network cannot be internal"),
        (NetworkSpec(name="x", ingress=True), "bridge", 400, IN + "driver bridge is not supported for the ingress network"),
        (NetworkSpec(name="x"), "macvlan", 501, "skep's cluster networks are overlay networks: it has none with driver macvlan"),
        (NetworkSpec(name="x", ipv6_enabled=True), "", 501, "skep's overlay networks carry IPv4 only: leave IPv6 out"),
        (subnets("fd00::/64"), "", 501, "skep's overlay networks carry IPv4 only: leave the subnet fd00::/64 out"),
        (
            driven(encrypted=""),
            "",
            501,
            "skep does not encrypt overlay networks: leave the option encrypted out, and encrypt between the hosts",
        ),
        (driven(**{MTU: "10"}), "", 400, IN + f"invalid value for {MTU}: 10"),
        (driven(**{VXLAN: "5"}), "", 400, IN + f"invalid VXLAN id in {VXLAN}: 5: give one number from 4096 to 16777215"),
        (driven(**{VXLAN: "4096"}), "", 400, IN + "VXLAN id 4096 is already in use by network ingress (ID)"),
        (subnets("10.0.0.0/25"), "", 400, IN + "invalid pool request: Pool overlaps with other one on this address space"),
        (subnets("10.9.0.0/24", "10.9.0.0/16"), "", 400, IN + "invalid pool request: Pool overlaps with other one on this address space"),
        (subnets("10.1.0.0/24"), "", 400, IN + "subnet 10.1.0.0/24 holds the address 10.1.0.1 of node thenode"),
        (subnets("169.254.7.0/24"), "", 400, IN + "invalid subnet 169.254.7.0/24: these addresses are not for containers"),
        (subnets("224.0.0.0/24"), "", 400, IN + "invalid subnet 224.0.0.0/24: these addresses are not for containers"),
        (subnets("127.0.0.0/24"), "", 400, IN + "invalid subnet 127.0.0.0/24: these addresses are not for containers"),
        (subnets("0.0.0.0/8"), "", 400, IN + "invalid subnet 0.0.0.0/8: these addresses are not for containers"),
        (subnets("10.9.0.0/33"), "", 400, IN + "ipam configuration: invalid subnet 10.9.0.0/33"),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", gateway="10.8.0.1"),))),
            "",
            400,
            IN + "ipam configuration: subnet 10.9.0.0/24 does not contain gateway 10.8.0.1",
        ),
        (
            subnets("10.9.0.0/31"),
            "",
            400,
            IN + "ipam configuration: subnet 10.9.0.0/31 has no room for a gateway and a task: it must be a /30 or wider",
        ),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", gateway="10.9.0.255"),))),
            "",
            400,
            IN + "ipam configuration: gateway 10.9.0.255 is no address of a host in subnet 10.9.0.0/24",
        ),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", ip_range="10.9.0.0/16"),))),
            "",
            400,
            IN + "ipam configuration: subnet 10.9.0.0/24 does not contain range 10.9.0.0/16",
        ),
        (
            NetworkSpec(name="x", ipam_options=IPAMOptions(configs=(IPAMConfig(subnet="10.9.0.0/24", auxiliary_addresses={"a": "x"}),))),
            "",
            400,
            IN + "ipam configuration: invalid auxiliary address a x",
        ),
        (NetworkSpec(name="x", ipam_options=IPAMOptions(driver=Driver(name="dhcp"))), "", 400, IN + "invalid IPAM specified: dhcp"),
    ],
)
def test_networks_refused(control: Control, wanted: NetworkSpec, driver: str, status: int, message: str) -> None:
    allocate(control)
    with pytest.raises(SkepError) as caught:
        asyncio.run(control.create_network(wanted, driver=driver))
    assert (caught.value.status, caught.value.message) == (status, message.replace("ID", control.network("ingress").id))


def test_ingress_goes_when_nobody_needs_it_and_comes_back(control: Control) -> None:
    service = create(control, spec(port(80)))
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.remove_network("ingress"))
    assert caught.value.message == (
        f"rpc error: code = FailedPrecondition desc = ingress network cannot be removed because service {service.id} depends on it"
    )
    asyncio.run(control.remove_service("web"))
    asyncio.run(control.remove_network("ingress"))
    made = asyncio.run(control.create_network(NetworkSpec(name="front", ingress=True, driver_configuration=Driver(name="overlay"))))
    assert (control.network("front").id, made.driver, made.allocated) == (made.id, "overlay", False)


def test_networks_come_and_go(control: Control) -> None:
    """Removed and made again at once under the same name, with the same subnet."""
    wanted = msgspec.structs.replace(subnets("10.9.0.0/24", name="net1"), attachable=True, internal=True)
    first = asyncio.run(control.create_network(wanted))
    assert (first.driver, first.allocated) == ("overlay", False)
    for again in (wanted, subnets("10.9.0.0/16", name="other")):
        with pytest.raises(SkepError):
            asyncio.run(control.create_network(again))
    allocate(control)
    assert [(c.subnet, c.gateway) for c in control.network("net1").ipam] == [("10.9.0.0/24", "10.9.0.1")]
    service = create(control, spec('{"TaskTemplate":{"Networks":[{"Target":"net1","Aliases":["a"]}]}}'))
    add(control, Task(id="t", service_id=service.id, attachments=(Attachment(network_id=first.id),)))
    asyncio.run(control.remove_service("web"))
    asyncio.run(control.remove_network("net1"))
    with pytest.raises(NotFound, match="network net1 not found"):
        asyncio.run(control.remove_network("net1"))
    second = asyncio.run(control.create_network(wanted))
    assert second.id != first.id
    allocate(control)
    assert [c.subnet for c in control.network("net1").ipam] == ["10.9.0.0/24"]


def test_a_network_in_use_stays(control: Control) -> None:
    add(control, Network(id="net", spec=NetworkSpec(name="net")), Service(id="s", spec=spec('{"Networks":[{"Target":"net"}]}')))
    with pytest.raises(Invalid) as caught:
        asyncio.run(control.remove_network("net"))
    assert caught.value.message == "rpc error: code = FailedPrecondition desc = network net is in use by service s"
    asyncio.run(control.remove_service("web"))
    add(control, Task(id="t", attachments=(Attachment(network_id="net"),)))
    with pytest.raises(Invalid, match="network net is in use by task t"):
        asyncio.run(control.remove_network("net"))
    store_of(control).apply([Change(Task, "t", {"status": TaskStatus(state=TaskState.COMPLETE)}, "t")])
    asyncio.run(control.remove_network("net"))
    with pytest.raises(SkepError) as forbidden:
        asyncio.run(control.remove_network("host"))
    assert (forbidden.value.status, forbidden.value.message) == (403, "host is a pre-defined network and cannot be removed")


# the cluster


def test_birth() -> None:
    control = new_control(default_addr_pool=["20.20.0.0/16"], subnet_size=25, availability="drain", manager_addr="10.1.0.1:2377")
    cluster = control.cluster()
    assert cluster.tokens.worker.startswith(f"SWMTKN-1-{DIGEST}-")
    assert len(cluster.tokens.worker) == len("SWMTKN-1-") + 50 + 1 + 25
    assert cluster.tokens.worker != cluster.tokens.manager
    assert (cluster.default_addr_pool, cluster.subnet_size, cluster.data_path_port) == (("20.20.0.0/16",), 25, 4789)
    assert cluster.spec.name == "default"
    assert cluster.spec.orchestration.task_history_retention_limit == 5
    assert cluster.spec.ca_config.node_cert_expiry == 90 * DAY
    assert cluster.spec.dispatcher.heartbeat_period == 5 * SECOND
    node = control.node("thenode")
    assert (node.role, node.spec.role, node.spec.availability, node.status.addr) == ("manager", "manager", "drain", "10.1.0.1")
    assert {n.name: (n.driver, n.predefined, n.spec.ingress) for n in control.view.all(Network)} == {
        "ingress": ("overlay", False, True),
        "bridge": ("bridge", True, False),
        "host": ("host", True, False),
        "none": ("null", True, False),
    }
    with pytest.raises(Invalid, match="holds a cluster already"):
        bootstrap_cluster(control.view, cluster_id="x", node_id="y", root_ca=RootCA(), rng=random.Random(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"default_addr_pool": ["20.20.0.0/33"]},
        {"default_addr_pool": ["20.20.0.0/26"]},
        {"default_addr_pool": ["169.254.0.0/16"]},
        {"default_addr_pool": ["fd00::/64"]},
        {"subnet_size": 30},
        {"data_path_port": 80},
        {"availability": "lazy"},
        {"spec": ClusterSpec(name="mine")},
    ],
)
def test_births_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        new_control(**settings)


def test_update_cluster(control: Control) -> None:
    before = control.cluster()
    text = (
        '{"Name":"default","Orchestration":{"TaskHistoryRetentionLimit":0},"Dispatcher":{"HeartbeatPeriod":11000000000},"Labels":{"a":"b"}}'
    )
    asyncio.run(control.update_cluster(before.version, msgspec.json.decode(text, type=ClusterSpec)))
    after = control.cluster()
    assert after.spec.orchestration.task_history_retention_limit == 0
    assert after.spec.dispatcher.heartbeat_period == 11 * SECOND
    assert after.spec.raft.snapshot_interval == 10_000
    assert after.spec.ca_config.node_cert_expiry == 90 * DAY
    assert after.tokens == before.tokens
    with pytest.raises(OutOfSequence):
        asyncio.run(control.update_cluster(before.version, ClusterSpec()))
    asyncio.run(control.update_cluster(after.version, after.spec, rotate_worker_token=True))
    rotated = control.cluster()
    assert rotated.tokens.manager == before.tokens.manager
    assert rotated.tokens.worker != before.tokens.worker
    assert rotated.tokens.worker.startswith(f"SWMTKN-1-{DIGEST}-")


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ('{"CAConfig":{"NodeCertExpiry":%d}}' % (HOUR // 4), 400, IN + "minimum certificate expiry time is: 1h0m0s"),  # noqa: UP031
        ('{"Dispatcher":{"HeartbeatPeriod":-1}}', 400, IN + "heartbeat time period cannot be a negative duration"),
        ('{"Name":"mine"}', 400, 'swarm spec must be named "default"'),
        ('{"EncryptionConfig":{"AutoLockManagers":true}}', 501, "skep has no autolock yet: switch it off"),
        ('{"CAConfig":{"ForceRotate":1}}', 501, "skep cannot rotate the cluster's CA yet"),
    ],
)
def test_cluster_updates_refused(control: Control, text: str, status: int, message: str) -> None:
    before = control.cluster()
    with pytest.raises(SkepError) as caught:
        asyncio.run(control.update_cluster(before.version, msgspec.json.decode(text, type=ClusterSpec)))
    assert (caught.value.status, caught.value.message) == (status, message)
    assert control.cluster() == before


def test_before_its_birth_there_is_no_cluster() -> None:
    clock = Clock()
    control = Control(MemoryStore(MemoryBackend(), clock), clock, random.Random(1), "n")
    with pytest.raises(Unavailable):
        control.cluster()
    assert not control.view.all(Cluster)


# logs


def test_logs_come_from_the_broker(control: Control) -> None:
    class Broker:
        def logs(self, tasks: Sequence[Task], options: LogOptions, *, service_id: str = "") -> AsyncIterator[LogLine]:
            async def lines() -> AsyncIterator[LogLine]:
                for task in tasks:
                    yield LogLine(task_id=task.id, stream=1, at=0, data=service_id.encode())

            return lines()

    class All:
        stdout = stderr = follow = True
        since = until = 0
        tail = -1

    async def read(source: Control) -> list[bytes]:
        return [line.data async for line in source.logs([Task(id="t")], All(), service_id="s")]

    with_broker = Control(store_of(control), Clock(), random.Random(1), "thenode", Broker())
    assert asyncio.run(read(with_broker)) == [b"s"]
    with pytest.raises(NotImplementedHere):
        asyncio.run(read(control))


def test_what_makes_root_of_a_node_is_the_clusters_to_allow(control: Control) -> None:
    def allow(patterns: str) -> None:
        cluster = control.cluster()
        labels = {"skep.allow.privileged": patterns} if patterns else {}
        asyncio.run(control.update_cluster(cluster.version, msgspec.structs.replace(cluster.spec, labels=labels)))

    refused = "rpc error: code = PermissionDenied desc = service web may not be privileged (label skep.privileged): allow it with"
    wanted = spec('{"Labels":{"skep.privileged":"true"}}')
    with pytest.raises(SkepError) as caught:
        create(control, wanted)
    assert caught.value.message.startswith(refused) and caught.value.status == 403
    allow("w*")
    create(control, wanted)
    update(control, spec())
    allow("")
    for attempt in ({}, {"rollback": "previous"}):
        with pytest.raises(SkepError) as caught:
            update(control, wanted, **attempt)
        assert caught.value.message.startswith(refused)
    assert "skep.privileged" not in control.service("web").spec.labels
    with pytest.raises(Invalid, match="skep knows no label"):
        cluster = control.cluster()
        asyncio.run(control.update_cluster(cluster.version, msgspec.structs.replace(cluster.spec, labels={"skep.allowed": "x"})))
