"""The service labels `skep.*`."""

from __future__ import annotations

import pytest

from skep.clock import MILLISECOND, MINUTE, SECOND
from skep.errors import Invalid
from skep.model.labels import (
    DeviceLabel,
    ServiceLabels,
    check_cluster_labels,
    check_container_labels,
    parse_labels,
    patterns,
    refusal,
    service_labels,
)


@pytest.mark.parametrize(
    ("labels", "meaning"),
    [
        ({}, ServiceLabels()),
        ({"com.example": "x", "skepticism": "y"}, ServiceLabels()),
        ({"skep.mesh.local": "true"}, ServiceLabels(mesh_local=True)),
        ({"skep.mesh.local": "false", "skep.drain": "0"}, ServiceLabels()),
        ({"skep.drain": "5s"}, ServiceLabels(drain=5 * SECOND)),
        ({"skep.drain": "1m1.5s"}, ServiceLabels(drain=MINUTE + 1500 * MILLISECOND)),
        ({"skep.drain": "10m", "skep.mesh.local": "true"}, ServiceLabels(True, 10 * MINUTE)),
        ({"skep.privileged": "true"}, ServiceLabels(privileged=True)),
        ({"skep.devices": "/dev/fuse"}, ServiceLabels(devices=(DeviceLabel("/dev/fuse", "/dev/fuse"),))),
        (
            {"skep.devices": "/dev/a:/b:r, /dev/c"},
            ServiceLabels(devices=(DeviceLabel("/dev/a", "/b", "r"), DeviceLabel("/dev/c", "/dev/c"))),
        ),
        (
            {"skep.devices": "/dev/a:rw,/dev/b:/c"},
            ServiceLabels(devices=(DeviceLabel("/dev/a", "/dev/a", "rw"), DeviceLabel("/dev/b", "/c"))),
        ),
    ],
)
def test_meaning(labels: dict[str, str], meaning: ServiceLabels) -> None:
    assert parse_labels(labels) == meaning == service_labels(labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"skep.drian": "5s"},
            'skep knows no label "skep.drian": the known ones are skep.devices, skep.drain, skep.mesh.local and skep.privileged',
        ),
        ({"skep.": ""}, 'skep knows no label "skep.": the known ones are skep.devices, skep.drain, skep.mesh.local and skep.privileged'),
        ({"skep.mesh.local": "yes"}, 'label skep.mesh.local must be true or false, not "yes"'),
        ({"skep.drain": "5"}, 'label skep.drain must be a duration such as 5s or 1m30s, not "5"'),
        ({"skep.drain": ""}, 'label skep.drain must be a duration such as 5s or 1m30s, not ""'),
        ({"skep.drain": "-5s"}, 'label skep.drain must be a duration such as 5s or 1m30s, not "-5s"'),
        ({"skep.devices": "fuse"}, 'label skep.devices must be /dev/x[:target[:permissions]], several with commas between, not "fuse"'),
        ({"skep.devices": ""}, 'label skep.devices must be /dev/x[:target[:permissions]], several with commas between, not ""'),
        (
            {"skep.devices": "/dev/x:/y:q"},
            'label skep.devices must be /dev/x[:target[:permissions]], several with commas between, not "/dev/x:/y:q"',
        ),
        (
            {"skep.devices": "/dev/../etc"},
            'label skep.devices must be /dev/x[:target[:permissions]], several with commas between, not "/dev/../etc"',
        ),
        ({"skep.privileged": "1"}, 'label skep.privileged must be true or false, not "1"'),
        ({"skep.drain": "10m1ns"}, "label skep.drain must be at most 10m, not 10m1ns"),
    ],
)
def test_refused(labels: dict[str, str], said: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_labels(labels)
    assert refused.value.text == said
    assert service_labels(labels) == ServiceLabels(), "stored all the same: as if it were not there"


def test_one_bad_label_does_not_take_the_other_with_it() -> None:
    assert service_labels({"skep.drain": "1s", "skep.mesh.local": "?", "skep.x": ""}) == ServiceLabels(drain=SECOND)


def test_labels_of_containers_say_nothing_to_skep() -> None:
    check_container_labels({"a": "b"})
    with pytest.raises(Invalid, match="is a label of the service, not of its containers"):
        check_container_labels({"skep.drain": "1s"})
    with pytest.raises(Invalid, match="on the service"):
        check_container_labels({"skep.x": "1s"})


def test_what_the_cluster_allows() -> None:
    allowed = patterns({"skep.allow.privileged": "agent-*, web"})
    assert allowed == ("agent-*", "web")
    privileged, devices = ServiceLabels(privileged=True), ServiceLabels(devices=(DeviceLabel("/dev/x", "/dev/x"),))
    for name in ("agent-1", "web"):
        assert refusal(privileged, name, allowed) == refusal(devices, name, allowed) == ""
    assert refusal(ServiceLabels(), "other", ()) == ""
    assert refusal(privileged, "webs", allowed) == (
        "service webs may not be privileged (label skep.privileged): allow it with skep swarm update --allow-privileged agent-*,web,webs"
    )
    assert refusal(devices, "a", ()) == (
        "service a may not have devices of its node (label skep.devices): allow it with skep swarm update --allow-privileged a"
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"skep.allow": "x"}, 'skep knows no label "skep.allow" of a cluster: the known one is skep.allow.privileged'),
        ({"skep.allow.privileged": "a b"}, 'label skep.allow.privileged: "a b" is no name of a service, and no pattern such as agent-*'),
    ],
)
def test_labels_of_the_cluster(labels: dict[str, str], said: str) -> None:
    check_cluster_labels({"com.example": "anything", "skep.allow.privileged": ""})
    with pytest.raises(Invalid) as refused:
        check_cluster_labels(labels)
    assert refused.value.text == said
