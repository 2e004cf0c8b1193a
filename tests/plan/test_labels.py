"""The service labels `skep.*`."""

from __future__ import annotations

import pytest

from skep.clock import MILLISECOND, MINUTE, SECOND
from skep.errors import Invalid
from skep.model.labels import ServiceLabels, check_container_labels, parse_labels, service_labels


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
    ],
)
def test_meaning(labels: dict[str, str], meaning: ServiceLabels) -> None:
    assert parse_labels(labels) == meaning == service_labels(labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"skep.drian": "5s"}, 'skep knows no label "skep.drian": the known ones are skep.drain and skep.mesh.local'),
        ({"skep.": ""}, 'skep knows no label "skep.": the known ones are skep.drain and skep.mesh.local'),
        ({"skep.mesh.local": "yes"}, 'label skep.mesh.local must be true or false, not "yes"'),
        ({"skep.drain": "5"}, 'label skep.drain must be a duration such as 5s or 1m30s, not "5"'),
        ({"skep.drain": ""}, 'label skep.drain must be a duration such as 5s or 1m30s, not ""'),
        ({"skep.drain": "-5s"}, 'label skep.drain must be a duration such as 5s or 1m30s, not "-5s"'),
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
