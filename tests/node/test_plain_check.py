"""What a plain container asks of a machine that has less: said when it is made, in Docker's words."""

from __future__ import annotations

import pytest

from skep.errors import Invalid
from skep.node.plain_check import check_resources
from skep.node.plain_config import Resources


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Resources(nano_cpus=2_000_000_001), "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        (Resources(nano_cpus=-1), "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        (Resources(cpuset_cpus="0,2"), "Requested CPUs are not available - requested 0,2, available: 0-1"),
        (Resources(cpuset_cpus="1-99"), "Requested CPUs are not available - requested 1-99, available: 0-1"),
        (Resources(cpuset_cpus="a"), "Invalid value a for cpuset cpus"),
    ],
)
def test_more_than_there_is(asked: Resources, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_resources(asked, cpus=2)
    assert refused.value.text == said


@pytest.mark.parametrize(
    "asked", [Resources(nano_cpus=2_000_000_000), Resources(cpuset_cpus="0-1"), Resources(cpuset_cpus="1"), Resources()]
)
def test_all_there_is(asked: Resources) -> None:
    check_resources(asked, cpus=2)
