"""Go's text/template, as much of it as `--format` needs: fields, pipelines, variables, if, range, with, and Docker's functions.

Data is what JSON makes: dicts, lists, text, numbers. A field that is not there prints `<no value>`, as Go's does for maps. Loaded only when
a template is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from skep.cli.gofunctions import COMPARISONS, FUNCTIONS, NO_VALUE, BadTemplate, Headers, Row, compare, text_of, to_json, truth

_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<char>'(?:[^'\\]|\\.)')|(?P<number>[+-]?\d+(?:\.\d+)?)|(?P<assign>:=|=)"""
    r"""|(?P<field>\.[A-Za-z_0-9]+)|(?P<variable>\$[A-Za-z_0-9]*)|(?P<word>[A-Za-z_][A-Za-z_0-9]*)|(?P<mark>[().|,])"""
)
CONSTANTS = {"true": True, "false": False, "nil": None}

__all__ = ["BadTemplate", "Headers", "Row", "Template", "to_json"]

Node = tuple[Any, ...]
Token = tuple[str, str, bool]
"""(kind, text, does a blank go before it)."""


class Template:
    """A template, read once. `render` may be called many times."""

    def __init__(self, text: str) -> None:
        self._parts = list(_cut(text))
        self._at = 0
        self._tree = self._block(())[0]

    def render(self, data: Any) -> str:
        out: list[str] = []
        _run(self._tree, data, [("$", data)], out)
        return "".join(out)

    def _block(self, ends: Sequence[str]) -> tuple[list[Node], str]:
        """Nodes up to one of the closing words; which one."""
        nodes: list[Node] = []
        while self._at < len(self._parts):
            kind, text = self._parts[self._at]
            self._at += 1
            if kind == "text":
                nodes.append(("text", text))
                continue
            tokens = _tokens(text)
            word = tokens[0][1] if tokens and tokens[0][0] == "word" else ""
            if word in ("end", "else"):
                if word not in ends:
                    raise BadTemplate(f"unexpected {{{{{word}}}}}")
                if word == "else" and len(tokens) > 1:
                    self._parts.insert(self._at, ("action", text.strip()[4:]))
                    return nodes, "else if"
                return nodes, word
            if word in ("if", "range", "with"):
                nodes.append(self._control(word, tokens[1:]))
            elif tokens:
                nodes.append(("print", _statement(tokens)))
        if ends:
            raise BadTemplate("unexpected EOF")
        return nodes, ""

    def _control(self, word: str, tokens: list[Token]) -> Node:
        statement = _statement(tokens)
        body, end = self._block(("end", "else"))
        other: list[Node] = []
        if end == "else":
            other, _ = self._block(("end",))
        elif end == "else if":
            inner = _tokens(self._parts[self._at][1])
            self._at += 1
            other = [self._control(inner[0][1], inner[1:])]
        return (word, statement, body, other)


def _cut(text: str) -> Iterator[tuple[str, str]]:
    """Text and actions, with the trim marks carried out."""
    rest, trim = text, False
    while True:
        before, found, after = rest.partition("{{")
        if trim:
            before = before.lstrip()
        if not found:
            yield ("text", before)
            return
        action, closed, rest = after.partition("}}")
        if not closed:
            raise BadTemplate("unclosed action")
        if action.startswith("- "):
            before, action = before.rstrip(), action[2:]
        trim = action.endswith(" -")
        if trim:
            action = action[:-2]
        if before:
            yield ("text", before)
        if not action.strip().startswith("/*"):
            yield ("action", action)


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    at, blank = 0, False
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise BadTemplate(f'unexpected "{text[at]}" in operand')
        if match.lastgroup is None:
            blank = True
        else:
            found.append((match.lastgroup, match.group(), blank))
            blank = False
        at = match.end()
    return found


def _statement(tokens: list[Token]) -> Node:
    """(names to assign to, does it declare them, pipeline)."""
    names: list[str] = []
    for n, (kind, text, _) in enumerate(tokens):
        if kind == "assign":
            names = [name for k, name, _ in tokens[:n] if k == "variable"]
            return (names, text == ":=", _pipeline(tokens[n + 1 :]))
        if kind not in ("variable",) and text != ",":
            break
    return (names, False, _pipeline(tokens))


def _pipeline(tokens: list[Token]) -> Node:
    commands: list[list[Node]] = [[]]
    at = 0
    while at < len(tokens):
        if tokens[at][1] == "|" and tokens[at][0] == "mark":
            commands.append([])
            at += 1
            continue
        operand, at = _operand(tokens, at)
        commands[-1].append(operand)
    if not all(commands):
        raise BadTemplate("missing value for command")
    return ("pipe", commands)


def _operand(tokens: list[Token], at: int) -> tuple[Node, int]:
    kind, text, _ = tokens[at]
    at += 1
    node: Node
    if kind == "string":
        node = ("value", text[1:-1] if text[0] == "`" else _unquoted(text))
    elif kind == "char":
        node = ("value", ord(_unquoted(text)))
    elif kind == "number":
        node = ("value", float(text) if "." in text else int(text))
    elif kind == "field":
        node = ("field", ("dot",), text[1:])
    elif kind == "variable":
        node = ("variable", text)
    elif kind == "word":
        if text in CONSTANTS:
            node = ("value", CONSTANTS[text])
        elif text in FUNCTIONS or text in COMPARISONS:
            node = ("call", text)
        else:
            raise BadTemplate(f'function "{text}" not defined')
    elif text == ".":
        node = ("dot",)
    elif text == "(":
        depth, end = 1, at
        while end < len(tokens) and depth:
            depth += (tokens[end][1] == "(") - (tokens[end][1] == ")")
            end += 1
        if depth:
            raise BadTemplate("unclosed left paren")
        node, at = _pipeline(tokens[at : end - 1]), end
    else:
        raise BadTemplate(f'unexpected "{text}" in operand')
    while at < len(tokens) and tokens[at][0] == "field" and not tokens[at][2]:
        node = ("field", node, tokens[at][1][1:])
        at += 1
    return node, at


def _unquoted(text: str) -> str:
    try:
        return str(json.loads('"' + text[1:-1].replace("\\'", "'") + '"'))
    except ValueError:
        raise BadTemplate(f"invalid string {text}") from None


# carrying out

Scope = list[tuple[str, Any]]


def _run(nodes: Sequence[Node], dot: Any, scope: Scope, out: list[str]) -> None:
    depth = len(scope)
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "print":
            value = _assigned(node[1], dot, scope)
            if not node[1][0]:
                out.append(text_of(value))
        elif node[0] == "range":
            _range(node, dot, scope, out)
        else:
            inner = len(scope)
            value = _assigned(node[1], dot, scope)
            if truth(value):
                _run(node[2], value if node[0] == "with" else dot, scope, out)
            else:
                _run(node[3], dot, scope, out)
            del scope[inner:]
    del scope[depth:]


def _assigned(statement: Node, dot: Any, scope: Scope) -> Any:
    names, declares, pipeline = statement
    value = _value(pipeline, dot, scope)
    if names and declares:
        scope.append((names[-1], value))
    elif names:
        at = next((n for n in range(len(scope) - 1, -1, -1) if scope[n][0] == names[-1]), None)
        if at is None:
            raise BadTemplate(f'undefined variable "{names[-1]}"')
        scope[at] = (names[-1], value)
    return value


def _range(node: Node, dot: Any, scope: Scope, out: list[str]) -> None:
    names, _, pipeline = node[1]
    value = _value(pipeline, dot, scope)
    pairs: list[tuple[Any, Any]]
    if isinstance(value, Mapping):
        pairs = sorted(value.items())
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    elif value is None or value is NO_VALUE:
        pairs = []
    elif isinstance(value, int) and not isinstance(value, bool):
        pairs = [(n, n) for n in range(value)]
    else:
        raise BadTemplate(f"range can't iterate over {text_of(value)}")
    for key, item in pairs:
        inner = len(scope)
        if names:
            scope.append((names[-1], item))
        if len(names) > 1:
            scope.append((names[0], key))
        _run(node[2], item, scope, out)
        del scope[inner:]
    if not pairs:
        _run(node[3], dot, scope, out)


def _value(node: Node, dot: Any, scope: Scope) -> Any:
    kind = node[0]
    if kind == "value":
        return node[1]
    if kind == "dot":
        return dot
    if kind == "variable":
        for name, value in reversed(scope):
            if name == node[1]:
                return value
        raise BadTemplate(f'undefined variable "{node[1]}"')
    if kind == "field":
        return _field(_value(node[1], dot, scope), node[2])
    if kind == "call":
        return _call(node[1], [])
    result: Any = NO_VALUE
    for n, command in enumerate(node[1]):
        last = [] if n == 0 else [result]
        if command[0][0] == "call":
            result = _call(command[0][1], [_value(operand, dot, scope) for operand in command[1:]] + last)
        elif (method := _method(command[0], dot, scope)) is not None:
            values = [_value(operand, dot, scope) for operand in command[1:]] + last
            if len(values) != 1 or not isinstance(values[0], str):
                raise BadTemplate(f'executing "" at <.{command[0][2]}>: wrong number of args for {command[0][2]}: want 1 got {len(values)}')
            result = method(values[0])
        elif len(command) > 1 or last:
            raise BadTemplate("can't give argument to non-function")
        else:
            result = _value(command[0], dot, scope)
    return result


def _method(node: Node, dot: Any, scope: Scope) -> Callable[[str], str] | None:
    if node[0] != "field":
        return None
    of = _value(node[1], dot, scope)
    return of.methods.get(node[2]) if isinstance(of, Headers) else None


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Row) and name not in value:
        raise BadTemplate(f'executing "" at <.{name}>: can\'t evaluate field {name}; known are: {", ".join(value)}')
    if isinstance(value, Mapping):
        return value.get(name, NO_VALUE)
    if value is None or value is NO_VALUE:
        return NO_VALUE
    raise BadTemplate(f"can't evaluate field {name} in type {type(value).__name__}")


def _call(name: str, values: list[Any]) -> Any:
    if name in COMPARISONS:
        return compare(name, values)
    try:
        return FUNCTIONS[name](*values)
    except (TypeError, AttributeError, ValueError) as error:
        raise BadTemplate(f"error calling {name}: {error}") from None
