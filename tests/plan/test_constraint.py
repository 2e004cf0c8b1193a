"""Constraints: how they are read, and which nodes meet them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from placing_world import make_node

from skep.errors import Invalid
from skep.model.enums import Role
from skep.model.node import Node
from skep.model.spec import NodeSpec
from skep.plan.schedule import BadConstraint, node_matches, validate_constraints

NODE = msgspec.structs.replace(
    make_node("Node-1", labels={"Zone": "Front", "empty": ""}, engine_labels={"disk": "ssd"}, addr="10.0.5.7"), role=Role.MANAGER
)


@pytest.mark.parametrize(
    ("text", "meets"),
    [
        ("node.id==node-1", True),
        ("node.id == NODE-1", True),
        ("node.id!=node-1", False),
        ("NODE.HOSTNAME==node-1", True),
        ("node.hostname==node", False),
        ("node.hostname==node-*", False),
        ("node.role==manager", True),
        ("node.role!=manager", False),
        ("node.role==nosuchrole", False),
        ("node.platform.os==linux", True),
        ("node.platform.arch==x86_64", True),
        ("node.platform.arch==amd64", False),
        ("node.ip==10.0.5.7", True),
        ("node.ip!=10.0.5.7", False),
        ("node.ip==10.0.5.0/24", True),
        ("node.ip==10.0.5.9/24", True),
        ("node.ip!=10.0.6.0/24", True),
        ("node.ip==10.0.6.0/24", False),
        ("node.ip==host", False),
        ("node.ip!=host", False),
        ("node.ip!=2001:db8::/32", True),
        ("node.labels.Zone==front", True),
        ("node.labels.zone==front", False),
        ("node.labels.zone!=front", True),
        ("node.labels.absent!=x", True),
        ("node.labels.absent==x", False),
        ("engine.labels.disk==SSD", True),
        ("engine.labels.disk!=ssd", False),
        ("node.color==red", False),
        ("node.color!=red", False),
        ("node.labels.==x", False),
    ],
)
def test_a_constraint_decides_for_a_node(text: str, meets: bool) -> None:
    assert node_matches([text], NODE) is meets


def test_all_must_hold_and_none_always_does() -> None:
    assert node_matches(None, NODE)
    assert node_matches([], NODE)
    assert node_matches(["node.role==manager", "node.labels.Zone==front"], NODE)
    assert not node_matches(["node.role==manager", "node.labels.Zone==back"], NODE)


def test_a_node_without_description_counts_as_empty() -> None:
    node = Node(id="n", spec=NodeSpec(labels={}))
    assert not node_matches(["node.hostname==x"], node)
    assert node_matches(["node.hostname!=x", "node.platform.os!=linux", "engine.labels.a!=b", "node.ip!=10.0.0.1"], node)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("node.role", "constraint expected one operator from ==, !="),
        ("node.role=manager", "constraint expected one operator from ==, !="),
        ("node.role>manager", "constraint expected one operator from ==, !="),
        ("", "constraint expected one operator from ==, !="),
        ("n==x", "key 'n' is invalid"),
        ("1node==x", "key '1node' is invalid"),
        ("no de==x", "key 'no de' is invalid"),
        ("node.id==", "value '' is invalid"),
        ("node.id==a<b", "value 'a<b' is invalid"),
        ("node.id===x", "value '=x' is invalid"),
        ("node.id==caf\u00e9", "value 'caf\u00e9' is invalid"),
    ],
)
def test_what_cannot_be_read_is_refused_in_dockers_words(text: str, message: str) -> None:
    with pytest.raises(BadConstraint) as caught:
        validate_constraints(["node.id==fine", text])
    assert caught.value.message == f"rpc error: code = Unknown desc = {message}"
    assert caught.value.status == 500
    assert isinstance(caught.value, Invalid)
    assert not node_matches([text], NODE)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        validate_constraints([text])
    except BadConstraint:
        assert not node_matches([text], NODE)
    else:
        assert node_matches([text], NODE) in (True, False)


@given(
    st.sampled_from(["node.id", "node.labels.Zone", "node.labels.none", "engine.labels.disk", "node.role"]),
    st.from_regex(r"[a-z]{1,6}", fullmatch=True),
)
def test_equal_and_not_equal_exclude_each_other(key: str, value: str) -> None:
    assert node_matches([f"{key}=={value}"], NODE) is not node_matches([f"{key}!={value}"], NODE)
