"""What users may ask when a service changes, what replaces tasks, and the exact words of refusals."""

from __future__ import annotations

import asyncio

import pytest
from control_world import IN, create, new_control, spec, store_of, update

from skep.clock import SECOND
from skep.errors import Invalid, NotFound, OutOfSequence, SkepError
from skep.manager.control import Control
from skep.model.enums import UpdateState
from skep.model.service import Service, UpdateStatus
from skep.model.spec import NetworkSpec, ServiceSpec
from skep.plan.ops import Change


@pytest.fixture
def control() -> Control:
    return new_control()


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
