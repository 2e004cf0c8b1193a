"""What `docker rmi` takes away: Docker's rules as a table (removal.py)."""

from __future__ import annotations

from typing import Any

import pytest

from skep.engine.oci.reference import parse
from skep.engine.oci.removal import decide, single
from skep.errors import Conflict

ID = "sha256:" + "ab" * 32
SHORT = "ab" * 6
DIGEST = "@sha256:" + "1" * 64
STOPPED, RUNNING = [("c" * 64, False)], [("d" * 64, True)]


def removed(names: list[str], name: str, using: Any = (), *, force: bool = False) -> tuple[list[str], bool]:
    references = [parse(one) for one in names]
    named = None if name == "id" else parse(name).tagged()
    gone, deletes = decide(ID, references, using, named, name, force=force)
    return [one.familiar for one in gone], deletes


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(Conflict) as caught:
        removed(*args, **options)
    return caught.value.message


def test_a_name_goes_and_the_image_with_its_last() -> None:
    assert removed(["a:1"], "a:1") == (["a:1"], True)
    assert removed(["a:1", "b:1"], "a:1") == (["a:1"], False)
    assert removed(["a:1", "a:2", f"a{DIGEST}"], "a:1") == (["a:1"], False), "the digest stays with the other tag"
    assert removed(["a:1", f"a{DIGEST}"], "a:1") == (["a:1", f"a{DIGEST}"], True)
    assert removed(["a:1", f"a{DIGEST}", f"b{DIGEST}"], "a:1") == (["a:1", f"a{DIGEST}"], False)
    assert removed(["a:1", f"a{DIGEST}"], f"a{DIGEST}") == ([f"a{DIGEST}"], False)


def test_by_id_all_names_of_one_repository_go() -> None:
    assert removed(["a:1", f"a{DIGEST}"], "id") == (["a:1", f"a{DIGEST}"], True)
    assert removed([], "id") == ([], True)
    text = f"conflict: unable to delete {SHORT} (must be forced) - image is referenced in multiple repositories"
    assert refusal(["a:1", "b:1"], "id") == text
    assert refusal(["a:1", "a:2"], "id") == text
    assert removed(["a:1", "b:1"], "id", force=True) == (["a:1", "b:1"], True)


def test_what_containers_use_stays() -> None:
    text = 'conflict: unable to remove repository reference "a:1" (must force) - container {} is using its referenced image ' + SHORT
    assert refusal(["a:1"], "a:1", STOPPED) == text.format("c" * 12)
    assert refusal(["a:1", f"a{DIGEST}"], "a:1", RUNNING) == text.format("d" * 12)
    assert removed(["a:1", "b:1"], "a:1", RUNNING) == (["a:1"], False)
    assert removed(["a:1"], "a:1", RUNNING, force=True) == (["a:1"], False), "only the name"
    running = f"conflict: unable to delete {SHORT} (cannot be forced) - image is being used by running container {'d' * 12}"
    for force in (False, True):
        assert refusal(["a:1", "b:1"], "id", STOPPED + RUNNING, force=force) == running
    stopped = f"conflict: unable to delete {SHORT} ({{}} be forced) - image is being used by stopped container {'c' * 12}"
    assert refusal(["a:1"], "id", STOPPED) == stopped.format("must")
    assert removed(["a:1"], "id", STOPPED, force=True) == (["a:1"], False), "it must be there to be started again"
    assert refusal([], "id", STOPPED, force=True) == stopped.format("cannot")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], True),
        (["a:1"], True),
        (["a:1", f"a{DIGEST}"], True),
        (["a:1", f"b{DIGEST}"], False),
        (["a:1", "a:2"], False),
        ([f"a{DIGEST}", f"b{DIGEST}"], False),
    ],
)
def test_one_repository(names: list[str], expected: bool) -> None:
    assert single([parse(name) for name in names]) is expected
