"""Templates: what Docker documents is expanded, everything else is refused with one clear sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.errors import Invalid
from skep.model.spec import ContainerSpec, Driver, Mount, VolumeOptions
from skep.model.task import Task
from skep.plan.template import DUMMY, Context, context_of, expand, expand_spec

CONTEXT = Context(
    service_id="sid",
    service_name="web",
    service_labels={"tier": "front", "a.b": "dotted"},
    node_id="nid",
    node_hostname="host1",
    node_os="linux",
    node_architecture="x86_64",
    task_id="tid",
    task_name="web.2.tid",
    task_slot="2",
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}", "web-2-host1"),
        ("{{ .Node.Platform.OS }}/{{.Node.Platform.Architecture}}", "linux/x86_64"),
        ("{{.Service.ID}}{{.Node.ID}}{{.Task.ID}}{{.Task.Name}}", "sidnidtidweb.2.tid"),
        ("{{.Service.Labels.tier}}", "front"),
        ('{{index .Service.Labels "a.b"}}', "dotted"),
        ('{{index .Service.Labels "none"}}|', "|"),
        ('{{join "-" .Service.Name "x" `y`}}', "web-x-y"),
        ('{{"a}}b\\n\\"c"}}', 'a}}b\n"c'),
        ("a {{- .Task.Slot -}} b", "a2b"),
        ("{{/* a comment }} */}}x", "x"),
        ("a } { }} {", "a } { }} {"),
        ("{{3}}", "3"),
    ],
)
def test_expanded(text: str, expected: str) -> None:
    assert expand(text, CONTEXT) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{.Nope}}", 'template: expansion:1: executing "expansion" at <.Nope>: can\'t evaluate field Nope in type Context'),
        (
            "{{.Service.Nope}}",
            'template: expansion:1: executing "expansion" at <.Service.Nope>: can\'t evaluate field Nope in type Service',
        ),
        ("\n{{.Service.Labels.x}}", 'template: expansion:2: executing "expansion" at <.Service.Labels.x>: map has no entry for key "x"'),
        ("{{.Service}}", 'template: expansion:1: "{{.Service}}" is not a text: name one of its fields'),
        ("{{env `X`}}", 'template: expansion:1: function "env" not defined'),
        ("{{if .Service.Name}}x{{end}}", 'template: expansion:1: "if" is not supported: fields, index and join are'),
        (
            "{{.Service.Name | printf}}",
            'template: expansion:1: "|" in "{{.Service.Name | printf}}" is not supported: fields, index and join are',
        ),
        ("{{.Service.Name", "template: expansion:1: unclosed action"),
        ('{{"x}}', "template: expansion:1: unterminated quoted string"),
        ("{{/* x }}", "template: expansion:1: unclosed comment"),
        ("{{}}", "template: expansion:1: missing value for command"),
        ("{{.Service.Name .Task.ID}}", "template: expansion:1: can't give argument to non-function .Service.Name"),
        ("{{join}}", "template: expansion:1: wrong number of args for join: want at least 1 got 0"),
        ("{{" + "x" * 70000 + "}}", "template: expansion: longer than 65536 characters"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        expand(text, CONTEXT)
    assert refused.value.text == message


@given(st.text(alphabet=st.sampled_from('{}."`/*- |$azSN\n\\'), max_size=40))
def test_any_text_is_expanded_or_refused_in_one_line(text: str) -> None:
    try:
        assert isinstance(expand(text, CONTEXT), str)
    except Invalid as error:
        assert error.text.startswith("template: expansion")


def test_a_whole_spec() -> None:
    spec = ContainerSpec(
        image="i",
        hostname="{{.Task.Slot}}.local",
        env=("A={{.Node.ID}}", "{{.Node.ID}}=x", "B"),
        mounts=(
            Mount(type="bind", source="/data/{{.Service.Name}}", target="/{{.Task.Slot}}"),
            Mount(
                type="volume",
                source="v{{.Task.Slot}}",
                target="/v",
                volume_options=VolumeOptions(labels={"k": "{{.Task.ID}}"}, driver_config=Driver(name="d", options={"o": "{{.Node.ID}}"})),
            ),
        ),
    )
    made = expand_spec(spec, CONTEXT)
    assert made.hostname == "2.local"
    assert made.env == ("A=nid", "{{.Node.ID}}=x", "B"), "names are no templates"
    assert made.mounts is not None
    assert [mount.source for mount in made.mounts] == ["/data/web", "v2"]
    assert made.mounts[0].target == "/2"
    options = made.mounts[1].volume_options
    assert options is not None and options.labels == {"k": "tid"}
    assert options.driver_config is not None and options.driver_config.options == {"o": "nid"}
    with pytest.raises(Invalid, match="expanding env failed: template: expansion:1: unclosed action"):
        expand_spec(ContainerSpec(env=("A={{",)), DUMMY)


def test_the_slot_of_a_global_task_is_its_node() -> None:
    task = Task(id="t", service_id="s", service_name="g", node_id="n1")
    context = context_of(task, {}, "h", "linux", "x86_64")
    assert (context.task_slot, context.task_name) == ("n1", "g.n1.t")
