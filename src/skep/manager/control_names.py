"""Names for services that come without one: `adjective_surname`, as Docker gives them."""

from __future__ import annotations

from collections.abc import Callable

from skep.ids import Random

_ADJECTIVES = (
    "amber brave breezy bright busy calm clever cosy crisp daring deft eager early easy fair fancy fond gallant gentle glad golden happy "
    "hardy honest humble jolly keen kind lively loyal lucid lucky mellow merry mild modest neat nimble noble patient placid plucky polite "
    "proud quick quiet ready serene sharp silver sober spry steady sunny swift tidy tranquil trusty vivid warm wise witty zesty"
)

_SURNAMES = (
    "abel bardeen boyle carson cerf curie dijkstra dirac ekman engelbart euler faraday fermat feynman franklin galois gauss germain "
    "goodall hamilton hawking hertz hopper huber johnson kepler knuth lamarr lamport leavitt liskov lovelace mayer meitner mendel "
    "mirzakhani napier newton nightingale noether pascal payne perlman planck ptolemy ramanujan ride ritchie sammet seeley shannon "
    "sinoussi somerville tesla thompson turing vaughan volta wescoff wiles wing wozniak wu yalow"
)
ADJECTIVES = tuple(_ADJECTIVES.split())
SURNAMES = tuple(_SURNAMES.split())


def random_name(rng: Random, taken: Callable[[str], bool]) -> str:
    """A free one. When luck runs out, with a number behind it."""
    for attempt in range(20):
        name = f"{ADJECTIVES[rng.randrange(0, len(ADJECTIVES))]}_{SURNAMES[rng.randrange(0, len(SURNAMES))]}"
        if attempt >= 5:
            name += str(rng.randrange(0, 10 ** (attempt - 4)))
        if not taken(name):
            break
    return name
