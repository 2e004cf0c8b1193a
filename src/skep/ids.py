"""Identifiers in the forms Docker's clients expect. Randomness is an argument, so that decisions can be replayed.

Swarm objects: 25 characters `[0-9a-z]` (SwarmKit identity/randomid.go: 17 random bytes, highest bit set, base 36, characters 1 to 26).
Containers: 64 hex digits.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Random(Protocol):
    """The part of `random.Random` that skep uses; `random.SystemRandom` in the daemon, a seeded one in simulations."""

    def getrandbits(self, k: int, /) -> int: ...

    def random(self) -> float: ...

    def uniform(self, a: float, b: float) -> float: ...

    def randrange(self, start: int, stop: int | None = None) -> int: ...


def base36(number: int, width: int = 0) -> str:
    """Shape: digits `[0-9a-z]`, most significant first, padded with zeros to `width`."""
    out = []
    while number:
        number, rest = divmod(number, 36)
        out.append(DIGITS[rest])
    return "".join(reversed(out)).rjust(width, "0")


def new_id(rng: Random) -> str:
    """A new identifier of a swarm object: 25 characters `[0-9a-z]`."""
    return base36(rng.getrandbits(17 * 8) | 1 << (17 * 8 - 1))[1:26]


def new_secret(rng: Random) -> str:
    """The secret part of a join token: 16 random bytes as 25 base 36 digits."""
    return base36(rng.getrandbits(128), 25)


def new_hex(rng: Random, digits: int = 64) -> str:
    """A new identifier of a container (64 hex digits), endpoint or exec."""
    return f"{rng.getrandbits(digits * 4):0{digits}x}"


def endpoint_id(owner: str, network_id: str) -> str:
    """A stable 64-digit name of one's place on a network: Docker draws it, here it follows from both ids, so that every node says the same.
    `owner`: a task's id, or that of a plain container."""
    return hashlib.sha256(f"{owner}/{network_id}".encode()).hexdigest()
