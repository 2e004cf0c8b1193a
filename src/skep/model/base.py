"""What all objects of the model share: frozen structs whose field names turn into Docker's JSON names.

A spec struct is at once what a client sends, what is stored and what is given back, so that a spec survives the round trip field for
field: a field at its default is left out, as Go's `omitempty` does; `always(x)` marks those that Docker's types always write.
"""

from __future__ import annotations

from typing import Any

import msgspec

_WORDS = {word.lower(): word for word in "ID UID GID DNS TTY CPUs CA CAs TLS IPAM URL URLs OS IP IPs IPv4 IPv6 SELinux".split()}


def docker_name(field: str) -> str:
    """`max_replicas` -> `MaxReplicas`, `dns_config` -> `DNSConfig`."""
    return "".join(_WORDS.get(word, word[:1].upper() + word[1:]) for word in field.split("_") if word)


def always(value: Any) -> Any:
    """A default that is written out all the same (msgspec leaves out plain defaults only)."""
    return msgspec.field(default_factory=lambda: value)


class Spec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename=docker_name):
    """Base of everything that has Docker's JSON form."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what is only ours (statuses, attachments): stored and sent as it is, translated at the API's edge."""


class Object(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of the stored objects.

    `version` is the store's index at the object's last write (Docker's `Version.Index`); `spec_index` the one at the last write of what a
    user may change. An update is in sequence when the version it names lies between the two: writes of our own (a heartbeat, the progress
    of a rollout) never make a user's update fail (they do in SwarmKit, its issue 1379).
    Times are nanoseconds since 1970; 0 = not yet.
    """

    id: str
    version: int = 0
    spec_index: int = 0
    created_at: int = 0
    updated_at: int = 0
