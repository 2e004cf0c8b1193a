"""Names for containers that nobody named: an adjective and somebody who made computing what it is."""

from __future__ import annotations

from collections.abc import Callable

from skep.ids import Random

ADJECTIVES = (
    "able agile amused awake bold brave breezy bright brisk calm candid careful cheerful clear clever cosy curious daring deft eager early "
    "easy elated fair fearless festive fluent frank friendly gentle glad golden graceful happy hardy helpful honest hopeful humble jolly "
    "keen kind lively loyal lucid lucky mellow merry mindful modest nimble noble patient peaceful playful polite prompt proud quick quiet "
    "ready relaxed robust serene sharp silent sincere smart snug sober solid steady sunny sweet swift tender thirsty tidy trusting upbeat "
    "vivid warm wise witty zealous"
).split()
SURNAMES = (
    "allen babbage backus bartik berners boole brooks catmull cerf church clarke codd conway curie dahl dijkstra engelbart erdos euler "
    "fermat feynman floyd galileo gauss goldberg hamilton hamming hoare holberton hopper jennings johnson kahn kay keller kepler kernighan "
    "kildall knuth lamarr lamport landin leibniz liskov lovelace mccarthy mcilroy meninsky milner minsky moore naur neumann newton noether "
    "nygaard pascal perlis perlman postel rabin ritchie rivest sammet scott shamir shannon snyder spence stallman stearns strachey tarjan "
    "thompson torvalds turing ullman valiant wescoff wilkes wing wirth yao zuse"
).split()


def random_name(rng: Random, taken: Callable[[str], bool]) -> str:
    """One that is free; where it is hard to find, with a digit behind it, as Docker does."""
    name = ""
    for attempt in range(100):
        name = f"{ADJECTIVES[rng.randrange(len(ADJECTIVES))]}_{SURNAMES[rng.randrange(len(SURNAMES))]}"
        if attempt >= 5:
            name += str(rng.randrange(10 ** (1 + attempt // 20)))
        if not taken(name):
            return name
    return f"{name}_{rng.getrandbits(64):016x}"
