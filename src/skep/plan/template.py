"""Go templates in a container's host name, environment and mounts, as SwarmKit expands them. Pure.

What is understood is what Docker documents: fields of the context (`{{.Service.Name}}`, `{{.Service.Labels.key}}`), `index` of a map,
`join`, string literals, comments, trim markers. Everything else (`if`, `range`, pipes, variables) is refused with one clear sentence: a
template that would silently mean something else is worse than none. Reference: SwarmKit template/, `missingkey=error`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from skep.errors import Invalid
from skep.model.spec import ContainerSpec, Driver, Mount, VolumeOptions
from skep.model.task import Task


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a template may name."""

    service_id: str = ""
    service_name: str = ""
    service_labels: Mapping[str, str] = {}
    node_id: str = ""
    node_hostname: str = ""
    node_os: str = ""
    node_architecture: str = ""
    task_id: str = ""
    task_name: str = ""
    task_slot: str = ""
    """The slot's number; the node's id for global services."""

    def tree(self) -> Mapping[str, object]:
        return {
            "Service": {"ID": self.service_id, "Name": self.service_name, "Labels": Map(self.service_labels)},
            "Node": {
                "ID": self.node_id,
                "Hostname": self.node_hostname,
                "Platform": {"OS": self.node_os, "Architecture": self.node_architecture},
            },
            "Task": {"ID": self.task_id, "Name": self.task_name, "Slot": self.task_slot},
        }


class Map(dict[str, str]):
    """A map of the user's: keys may be missing, and say so; the fields of a struct may not."""


DUMMY = Context(
    service_id="serviceID",
    service_name="serviceName",
    node_id="nodeID",
    node_hostname="nodeHostname",
    node_os="linux",
    node_architecture="x86_64",
    task_id="taskID",
    task_name="taskName",
    task_slot="1",
)
"""For a dry run when a service is created: finds what can never be expanded."""

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<field>(?:\.[^\W\d]\w*)+)|(?P<dot>\.)|(?P<name>[^\W\d]\w*)|(?P<other>\S))"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_KEYWORDS = frozenset({"if", "else", "end", "range", "with", "define", "template", "block", "break", "continue"})
LIMIT = 1 << 16


def context_of(task: Task, service_labels: Mapping[str, str], hostname: str, os: str, architecture: str) -> Context:
    return Context(
        service_id=task.service_id,
        service_name=task.service_name,
        service_labels=service_labels,
        node_id=task.node_id,
        node_hostname=hostname,
        node_os=os,
        node_architecture=architecture,
        task_id=task.id,
        task_name=task.name,
        task_slot=str(task.slot) if task.slot else task.node_id,
    )


class Named(Protocol):
    def tree(self) -> Mapping[str, object]:
        """What a template may name."""
        ...


def expand(text: str, context: Named) -> str:
    """Raises Invalid in the form of Go's own errors: `template: expansion:1: ...`."""
    if "{{" not in text:
        return text
    if len(text) > LIMIT:
        raise Invalid(f"template: expansion: longer than {LIMIT} characters")
    tree = context.tree()
    out: list[str] = []
    position, trim = 0, False
    while True:
        begin = text.find("{{", position)
        literal = text[position:] if begin < 0 else text[position:begin]
        literal = literal.lstrip() if trim else literal
        if begin < 0:
            out.append(literal)
            return "".join(out)
        line = text.count("\n", 0, begin) + 1
        action, position = _action(text, begin + 2, line)
        if re.match(r"-\s", action):
            literal, action = literal.rstrip(), action[1:]
        trim = bool(re.search(r"\s-$", action))
        action = action[:-1] if trim else action
        out.append(literal)
        if not action.strip().startswith("/*"):
            out.append(_evaluate(action, tree, line))


def _action(text: str, start: int, line: int) -> tuple[str, int]:
    """(what stands between the braces, where the text goes on). Braces in strings do not count."""
    position = start
    while position < len(text):
        if text.startswith("}}", position):
            return text[start:position], position + 2
        if text.startswith("/*", position):
            end = text.find("*/", position)
            if end < 0:
                raise Invalid(f"template: expansion:{line}: unclosed comment")
            position = end + 2
        elif text[position] in '"`':
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup != "string":
                raise Invalid(f"template: expansion:{line}: unterminated quoted string")
            position = match.end()
        else:
            position += 1
    raise Invalid(f"template: expansion:{line}: unclosed action")


def _evaluate(action: str, tree: Mapping[str, object], line: int) -> str:
    tokens: list[tuple[str, str]] = []
    position, source = 0, action.strip()
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None or match.lastgroup is None:
            break
        tokens.append((match.lastgroup, match.group(match.lastgroup)))
        position = match.end()
    if not tokens:
        raise Invalid(f"template: expansion:{line}: missing value for command")
    for kind, word in tokens:
        if kind == "other":
            raise Invalid(f'template: expansion:{line}: "{word}" in "{{{{{source}}}}}" is not supported: fields, index and join are')
    kind, word = tokens[0]
    if kind != "name":
        if len(tokens) > 1:
            raise Invalid(f"template: expansion:{line}: can't give argument to non-function {word}")
        return _text(_operand(kind, word, tree, source, line), source, line)
    if word in _KEYWORDS:
        raise Invalid(f'template: expansion:{line}: "{word}" is not supported: fields, index and join are')
    arguments = [_operand(kind, value, tree, source, line) for kind, value in tokens[1:]]
    if word == "join":
        texts = [_text(value, source, line) for value in arguments]
        if not texts:
            raise Invalid(f"template: expansion:{line}: wrong number of args for join: want at least 1 got 0")
        return texts[0].join(texts[1:])
    if word == "index":
        if len(arguments) != 2 or not isinstance(arguments[0], Map):
            raise Invalid(f"template: expansion:{line}: index needs a map and a key")
        return arguments[0].get(_text(arguments[1], source, line), "")
    raise Invalid(f'template: expansion:{line}: function "{word}" not defined')


def _operand(kind: str, word: str, tree: Mapping[str, object], source: str, line: int) -> object:
    if kind == "string":
        return word[1:-1] if word[0] == "`" else re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), word[1:-1])
    if kind == "number":
        return word
    if kind == "dot":
        return tree
    if kind == "name":
        raise Invalid(f'template: expansion:{line}: function "{word}" not defined')
    value: object = tree
    path = "Context"
    for name in word.split(".")[1:]:
        if isinstance(value, Map):
            if name not in value:
                raise Invalid(f'template: expansion:{line}: executing "expansion" at <{word}>: map has no entry for key "{name}"')
            value = value[name]
        elif isinstance(value, Mapping) and name in value:
            value, path = value[name], name
        else:
            raise Invalid(f'template: expansion:{line}: executing "expansion" at <{word}>: can\'t evaluate field {name} in type {path}')
    return value


def _text(value: object, source: str, line: int) -> str:
    if isinstance(value, str):
        return value
    raise Invalid(f'template: expansion:{line}: "{{{{{source}}}}}" is not a text: name one of its fields')


# a container's spec


def expand_spec(spec: ContainerSpec, context: Context) -> ContainerSpec:
    """Host name, values of the environment, sources, targets, labels and driver options of mounts. Raises Invalid saying where."""
    return msgspec.structs.replace(
        spec,
        hostname=_part("hostname", spec.hostname, context),
        env=None if spec.env is None else expand_env(spec.env, context),
        mounts=None if spec.mounts is None else tuple(_mount(mount, context) for mount in spec.mounts),
    )


def _part(what: str, text: str, context: Context) -> str:
    try:
        return expand(text, context)
    except Invalid as error:
        raise Invalid(f"expanding {what} failed: {error.text}") from None


def expand_env(env: Sequence[str], context: Context) -> tuple[str, ...]:
    """Values only: a name is never a template."""
    out = []
    for item in env:
        name, equals, value = item.partition("=")
        out.append(name + equals + _part("env", value, context) if equals else item)
    return tuple(out)


def _mount(mount: Mount, context: Context) -> Mount:
    options = mount.volume_options
    if options is not None:
        options = VolumeOptions(
            no_copy=options.no_copy,
            labels=_values(options.labels, context),
            subpath=options.subpath,
            driver_config=None
            if options.driver_config is None
            else Driver(name=options.driver_config.name, options=_values(options.driver_config.options, context)),
        )
    return msgspec.structs.replace(
        mount,
        source=_part("mounts", mount.source, context),
        target=_part("mounts", mount.target, context),
        volume_options=options,
    )


def _values(values: Mapping[str, str] | None, context: Context) -> dict[str, str] | None:
    return None if values is None else {key: _part("mounts", value, context) for key, value in values.items()}
