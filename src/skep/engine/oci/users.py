"""Who a container's process runs as: `user`, `uid`, `user:group`, `uid:gid` resolved in the image's passwd and group files. Pure.

Texts of the errors are those of Docker (moby/sys/user).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from skep.errors import Invalid

_MAX_ID = (1 << 31) - 1


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    """Supplementary, sorted, the primary one left out."""
    home: str = "/"


def _records(text: str, fields: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            parts = line.split(":")
            if len(parts) >= fields:
                yield parts


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit():
        return None
    value = int(text)
    if value > _MAX_ID:
        raise Invalid(f"uids and gids must be in range 0-{_MAX_ID}")
    return value


def identify(user: str, groups: Sequence[str], passwd: str, group: str) -> Identity:
    """`groups`: more supplementary groups, names or numbers. Raises Invalid for a name that the image does not know."""
    name, _, group_name = user.partition(":")
    uid, gid, home, login = 0, 0, "/", ""
    number = _number(name)
    found = False
    for entry in _records(passwd, 6):
        matches = entry[2] == str(number) if number is not None else entry[0] == (name or "root")
        if matches and entry[2].isdigit() and entry[3].isdigit():
            login, uid, gid, home, found = entry[0], int(entry[2]), int(entry[3]), entry[5] or "/", True
            break
    if not found:
        if number is None and name not in ("", "root"):
            raise Invalid(f"unable to find user {name}: no matching entries in passwd file")
        uid, gid = number or 0, 0
        if uid == 0:
            home = "/root"
    known = [(entry[0], entry[2], entry[3] if len(entry) > 3 else "") for entry in _records(group, 3)]
    if group_name:
        gid = _group(group_name, known)
    extra = {_group(entry, known) for entry in groups}
    if login and not group_name:
        extra.update(int(gid_) for _, gid_, members in known if gid_.isdigit() and login in members.split(","))
    extra.discard(gid)
    return Identity(uid=uid, gid=gid, groups=tuple(sorted(extra)), home=home)


def _group(name: str, known: Iterable[tuple[str, str, str]]) -> int:
    number = _number(name)
    if number is not None:
        return number
    for entry, gid, _ in known:
        if entry == name and gid.isdigit():
            return int(gid)
    raise Invalid(f"unable to find group {name}: no matching entries in group file")
