"""What `docker rmi` takes away: a name, or the image with all its names. Pure; Docker's rules (daemon/images/image_delete.go) and texts."""

from __future__ import annotations

from collections.abc import Sequence

from skep.engine.oci.reference import Reference
from skep.errors import Conflict

Using = Sequence[tuple[str, bool]]
"""(container id, running) of all containers made from an image."""


def short(id: str) -> str:
    return id.partition(":")[2][:12]


def decide(
    id: str, references: Sequence[Reference], using: Using, named: Reference | None, text: str, *, force: bool
) -> tuple[list[Reference], bool]:
    """Which names go, and whether the image goes with them. `named`: what was asked for, where it was no id; `text`: as it was written.

    Other than Docker's, our containers need their image to be started again: by force it only loses its names while there is one.
    Raises Conflict.
    """
    left, gone = list(references), []
    if named is None:
        for container, running in using:
            if running:
                raise _conflict(id, f"image is being used by running container {container[:12]}", hard=True)
        if not force and not single(left):
            raise _conflict(id, "image is referenced in multiple repositories")
        if using and not (force and left):
            raise _conflict(id, f"image is being used by stopped container {using[0][0][:12]}", hard=force)
        return left, not using
    if not force and single(left) and using:
        raise Conflict(
            f'conflict: unable to remove repository reference "{text}" (must force) - '
            f"container {using[0][0][:12]} is using its referenced image {short(id)}"
        )
    taken = [other for other in left if other.full == named.full or _same_digest(other, named)]
    gone += taken
    left = [other for other in left if other not in taken]
    if not named.digest and not any(not other.digest and other.name == named.name for other in left):
        # only digests of this repository are left: nobody would find them by a name
        taken = [other for other in left if other.name == named.name]
        gone += taken
        left = [other for other in left if other not in taken]
    return gone, not left and not using


def _same_digest(other: Reference, named: Reference) -> bool:
    return bool(named.digest) and other.name == named.name and other.digest == named.digest


def _conflict(id: str, reason: str, *, hard: bool = False) -> Conflict:
    return Conflict(f"conflict: unable to delete {short(id)} ({'cannot' if hard else 'must'} be forced) - {reason}")


def single(references: Sequence[Reference]) -> bool:
    """At most one tag, and digests of that tag's repository only."""
    if len(references) <= 1:
        return True
    tags = [reference for reference in references if not reference.digest]
    names = {reference.name for reference in references if reference.digest}
    if len(tags) > 1:
        return False
    return names == {(tags or references)[0].name}
