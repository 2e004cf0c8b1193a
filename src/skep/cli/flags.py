"""Flags as Docker's command line reads them (pflag): `--name x`, `--name=x`, `-n x`, `-nx`, `-qd`, `--detach=false`, `--`.

A table of flags per command, and not argparse: argparse knows no `--flag=false`, says other things when it is unhappy, and takes 7 ms to
import. What is wrong ends in Usage (the line, how to use it, exit code 125).
"""

from __future__ import annotations

from skep.cli.words import Bad, parse_bool, parse_bytes, parse_cpus, parse_duration, parse_float, parse_int, parse_uint, shell_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


class Usage(Exception):
    """The command line cannot be understood. `hint` is the word before the help's name: Docker has two, and scripts that compare."""

    def __init__(self, message: str, command: Command | None = None, code: int = 125, hint: str = "Run") -> None:
        super().__init__(message)
        self.command = command
        self.code = code
        self.hint = hint


class Flag:
    """`kind` is the word the help shows; `default` is shown in the help, the value of a flag not given is None, False or []."""

    __slots__ = ("default", "help", "hidden", "kind", "name", "other", "own", "parse", "short")

    def __init__(
        self,
        name: str,
        kind: str,
        help: str,
        short: str = "",
        default: str = "",
        parse: Callable[[str], Any] | None = None,
        *,
        own: bool = False,
        other: str = "",
        hidden: bool = False,
    ) -> None:
        """`own`: Docker's command does not have it. `other`: an older name. The help tells neither that nor what is `hidden`."""
        self.name = name
        self.kind = kind
        self.help = help
        self.short = short
        self.default = default
        self.other = other
        self.hidden = hidden
        self.parse = parse or PARSERS.get(kind)
        self.own = own

    @property
    def many(self) -> bool:
        return self.kind in MANY

    @property
    def label(self) -> str:
        """As pflag's errors name it."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"


def positive(text: str) -> int:
    duration = parse_duration(text)
    if duration < 0:
        raise Bad("duration cannot be negative")
    return duration


def _filter(text: str) -> tuple[str, str]:
    """Keys are lower case, blanks around are not meant."""
    key, found, value = text.partition("=")
    if not found:
        raise Bad("bad format of filter (expected name=value)")
    return key.strip().lower(), value.strip()


def quoted(text: str) -> str:
    """Go's %q."""
    import json

    return json.dumps(text, ensure_ascii=False)


PARSERS: dict[str, Callable[[str], Any]] = {
    "bool": parse_bool,
    "uint": parse_uint,
    "uint16": lambda text: parse_uint(text, 16),
    "uint32": lambda text: parse_uint(text, 32),
    "int": parse_int,
    "float": parse_float,
    "duration": parse_duration,
    "decimal": parse_cpus,
    "bytes": parse_bytes,
    "command": shell_words,
    "filter": _filter,
}

MANY = frozenset(
    [
        "list",
        "map",
        "strings",
        "filter",
        "mount",
        "network",
        "secret",
        "config",
        "port",
        "pref",
        "ulimit",
        "ipNetSlice",
        "external-ca",
        "gpu-request",
    ]
)


def split_list(texts: Sequence[str]) -> list[str]:
    """The values of a flag of kind `strings`: it may be given several times, each time with several values, separated by commas."""
    return [part for text in texts for part in text.split(",")]


class Command:
    """`usage` is what follows the name; `least` and `most` count arguments; `run` gets (shell, values, arguments) and returns an exit code.

    Where `interspersed` is False the first argument ends the flags: what follows belongs to another program. `details` is what the
    command's own help says in place of the summary.
    """

    __slots__ = ("aliases", "details", "flags", "interspersed", "least", "most", "name", "run", "summary", "usage")

    def __init__(
        self,
        name: str,
        usage: str,
        summary: str,
        run: Callable[..., int],
        flags: Sequence[Flag] = (),
        least: int = 0,
        most: int | None = 0,
        aliases: Sequence[str] = (),
        interspersed: bool = True,
        details: str = "",
    ) -> None:
        self.name = name
        self.usage = usage
        self.summary = summary
        self.run = run
        self.flags = flags
        self.least = least
        self.most = most
        self.aliases = aliases
        self.interspersed = interspersed
        self.details = details or summary

    @property
    def line(self) -> str:
        return f"skep {self.name} {self.usage}".rstrip()

    def called(self, name: str) -> Command:
        """The same under the name it was called by: `container run` and `run` are one."""
        if name == self.name:
            return self
        return Command(
            name, self.usage, self.summary, self.run, self.flags, self.least, self.most, self.aliases, self.interspersed, self.details
        )


class Values:
    """What was given. `values["replicas"]` is None (False, []) when it was not."""

    def __init__(self, flags: Sequence[Flag]) -> None:
        self._flags = {flag.name: flag for flag in flags}
        self._given: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name in self._given:
            return self._given[name]
        flag = self._flags[name]
        return [] if flag.many else False if flag.kind == "bool" else None

    def get(self, name: str, default: Any = None) -> Any:
        """The default for flags not given, and for those the command does not have."""
        return self._given.get(name, default)

    def given(self, *names: str) -> bool:
        """Was any of them on the command line?"""
        return any(name in self._given for name in names)

    @property
    def count(self) -> int:
        return len(self._given)

    def filters(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key, value in self._given.get("filter", ()):
            found.setdefault(key, []).append(value)
        return found

    def put(self, flag: Flag, text: str) -> None:
        try:
            value = flag.parse(text) if flag.parse else text
        except Bad as error:
            raise Usage(f'invalid argument {quoted(text)} for "{flag.label}" flag: {error}') from None
        if flag.many:
            self._given.setdefault(flag.name, []).append(value)
        else:
            self._given[flag.name] = value


def parse(command: Command, words: Sequence[str]) -> tuple[Values, list[str]]:
    """(flags, arguments). Raises Usage; `help` is given as a flag of any command."""
    values = Values(command.flags)
    arguments: list[str] = []
    try:
        _parse(command, list(words), values, arguments)
    except Usage as error:
        raise Usage(str(error), command, error.code, error.hint) from None
    if not values.given("help"):
        check_arguments(command, arguments)
    return values, arguments


HELP = Flag("help", "bool", "Print usage")


def _parse(command: Command, words: list[str], values: Values, arguments: list[str]) -> None:
    names = {flag.name: flag for flag in (HELP, *command.flags)}
    names.update({flag.other: flag for flag in command.flags if flag.other})
    shorts = {flag.short: flag for flag in command.flags if flag.short}
    while words:
        word = words.pop(0)
        if word == "--":
            arguments += words
            return
        if word.startswith("--"):
            name, found, text = word[2:].partition("=")
            flag = names.get(name)
            if flag is None:
                raise Usage(f"unknown flag: --{name}")
            if not found:
                if flag.kind == "bool":
                    text = "true"
                elif words:
                    text = words.pop(0)
                else:
                    raise Usage(f"flag needs an argument: --{name}")
            values.put(flag, text)
        elif len(word) > 1 and word[0] == "-":
            _parse_shorts(word, words, shorts, values)
        else:
            arguments.append(word)
            if not command.interspersed:
                arguments += words
                return


def _parse_shorts(word: str, words: list[str], shorts: Mapping[str, Flag], values: Values) -> None:
    rest = word[1:]
    while rest:
        letter, rest = rest[0], rest[1:]
        flag = shorts.get(letter)
        if flag is None:
            if letter == "h":
                values.put(HELP, "true")
                continue
            raise Usage(f"unknown shorthand flag: '{letter}' in {word}")
        if rest.startswith("="):
            values.put(flag, rest[1:])
            return
        if flag.kind == "bool":
            values.put(flag, "true")
        elif rest:
            values.put(flag, rest)
            return
        elif words:
            values.put(flag, words.pop(0))
        else:
            raise Usage(f"flag needs an argument: '{letter}' in {word}")


def check_arguments(command: Command, arguments: Sequence[str]) -> None:
    """Docker's sentences about the number of arguments."""
    number, least, most = len(arguments), command.least, command.most
    if least <= number and (most is None or number <= most):
        return
    if most == 0:
        text = "accepts no arguments"
    elif least == most:
        text = f"requires {least} argument{'' if least == 1 else 's'}"
    elif most is None:
        text = f"requires at least {least} argument{'' if least == 1 else 's'}"
    elif number < least or least == 0:
        text = f"requires at least {least} and at most {most} argument{'' if most == 1 else 's'}"
    else:
        text = f"requires at least {least} and at most {most} arguments"
    raise Usage(f"skep: 'skep {command.name}' {text}", command, 1, "See" if most is None and least else "Run")


# help


OWN = "\nOptions that docker does not have:\n"


def help_text(command: Command, width: int = 80) -> str:
    parts = [f"Usage:  {command.line}\n\n{command.details}\n"]
    if command.aliases:
        parts.append("\nAliases:\n  " + ", ".join(f"skep {name}" for name in command.aliases) + "\n")
    if command.flags:
        flags = [flag for flag in command.flags if not flag.own]
        if any(flag.short == "h" for flag in flags):
            flags.append(HELP)
        parts.append("\nOptions:\n" + flag_usages(flags, width - 1))
    if own := [flag for flag in command.flags if flag.own]:
        parts.append(OWN + flag_usages(own, width - 1))
    return "".join(parts)


def flag_usages(flags: Sequence[Flag], width: int) -> str:
    rows = []
    for flag in sorted(flags, key=lambda flag: flag.name):
        if flag.hidden:
            continue
        left = f"  -{flag.short}, --{flag.name}" if flag.short else f"      --{flag.name}"
        if flag.kind != "bool":
            left += f" {flag.kind}"
        rows.append((left, flag.help + (f" (default {flag.default})" if flag.default else "")))
    edge = max(len(left) for left, _ in rows) + 3
    return "".join(f"{left.ljust(edge)}{_wrapped(edge, width, text)}\n" for left, text in rows)


def _wrapped(indent: int, width: int, text: str) -> str:
    """pflag's wrapping: five columns of slop for a last word."""
    slop = 5
    room = width - indent - slop
    lines = []
    while text:
        line, text = _split(room, slop, text)
        lines.append(line.replace("\n", "\n" + " " * indent))
    return ("\n" + " " * indent).join(lines)


def _split(room: int, slop: int, text: str) -> tuple[str, str]:
    if room + slop > len(text):
        return text, ""
    blank = max(text.rfind(c, 0, room) for c in " \t\n")
    if blank <= 0:
        return text, ""
    line = text.rfind("\n", 0, room)
    at = line if 0 < line < blank else blank
    return text[:at], text[at + 1 :]
