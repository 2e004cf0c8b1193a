"""Says of broken JSON what Go's decoder says, so that `invalid JSON: ...` reads as Docker's users know it.

Only run on bodies that msgspec has refused; a body of valid syntax gives None, and the caller reports the type error instead.
"""

from __future__ import annotations

_BLANKS = b" \t\r\n"
_LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_END = "unexpected EOF"


class _Broken(Exception):
    pass


def _quote(byte: int) -> str:
    if byte == ord("'"):
        return "'\\''"
    if byte == ord('"'):
        return "'\"'"
    return f"'{chr(byte)}'" if 32 <= byte < 127 else "'" + repr(chr(byte))[1:-1] + "'"


class _Scanner:
    """A recursive reader with Go's words; depth is bounded so that a hostile body cannot exhaust the stack."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def peek(self) -> int:
        while self.at < len(self.data) and self.data[self.at] in _BLANKS:
            self.at += 1
        if self.at >= len(self.data):
            raise _Broken(_END)
        return self.data[self.at]

    def wrong(self, context: str) -> _Broken:
        if self.at >= len(self.data):
            return _Broken(_END)
        return _Broken(f"invalid character {_quote(self.data[self.at])} {context}")

    def value(self, depth: int = 0) -> None:
        if depth > 200:
            raise _Broken("exceeded max depth")
        first = self.peek()
        if first == ord("{"):
            self.members(depth)
        elif first == ord("["):
            self.elements(depth)
        elif first == ord('"'):
            self.string()
        elif first in _LITERALS:
            self.literal(_LITERALS[first])
        elif first == ord("-") or chr(first).isdigit():
            self.number()
        else:
            raise self.wrong("looking for beginning of value")

    def members(self, depth: int) -> None:
        self.at += 1
        if self.peek() == ord("}"):
            self.at += 1
            return
        while True:
            if self.peek() != ord('"'):
                raise self.wrong("looking for beginning of object key string")
            self.string()
            if self.peek() != ord(":"):
                raise self.wrong("after object key")
            self.at += 1
            self.value(depth + 1)
            if self.peek() == ord("}"):
                self.at += 1
                return
            if self.peek() != ord(","):
                raise self.wrong("after object key:value pair")
            self.at += 1

    def elements(self, depth: int) -> None:
        self.at += 1
        if self.peek() == ord("]"):
            self.at += 1
            return
        while True:
            self.value(depth + 1)
            if self.peek() == ord("]"):
                self.at += 1
                return
            if self.peek() != ord(","):
                raise self.wrong("after array element")
            self.at += 1

    def string(self) -> None:
        self.at += 1
        while self.at < len(self.data):
            byte = self.data[self.at]
            if byte == ord('"'):
                self.at += 1
                return
            if byte < 32:
                raise self.wrong("in string literal")
            if byte == ord("\\"):
                self.at += 1
                if self.at < len(self.data) and self.data[self.at] not in b'bfnrt\\/"u':
                    raise self.wrong("in string escape code")
            self.at += 1
        raise _Broken(_END)

    def literal(self, word: bytes) -> None:
        for index, byte in enumerate(word):
            if self.at >= len(self.data) or self.data[self.at] != byte:
                raise self.wrong(f"in literal {word.decode()} (expecting {_quote(word[index])})")
            self.at += 1

    def number(self) -> None:
        if self.data[self.at] == ord("-"):
            self.at += 1
            if self.at >= len(self.data) or not chr(self.data[self.at]).isdigit():
                raise self.wrong("in numeric literal")
        while self.at < len(self.data) and self.data[self.at] in b"0123456789.eE+-":
            self.at += 1


def syntax_error(data: bytes) -> str | None:
    """The sentence of Go's encoding/json for the first error in `data`; None where the syntax is fine."""
    scanner = _Scanner(data)
    try:
        scanner.value()
    except _Broken as error:
        return str(error)
    return None
