"""What users may ask of services, and the exact words when they may not (Docker's, where Docker has them)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from control_world import IN, add, create, new_control, port, spec, store_of, update

from skep.errors import Invalid, SkepError
from skep.manager.control import Control
from skep.manager.control_validate import image_reference
from skep.model.labels import NAMED
from skep.model.node import Node
from skep.model.service import Endpoint, Service
from skep.model.spec import NodeSpec, PortConfig, ServiceSpec
from skep.plan.ops import Change


@pytest.fixture
def control() -> Control:
    return new_control()


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
