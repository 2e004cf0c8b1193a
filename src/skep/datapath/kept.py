"""The node's own networks on disk, as they were applied last: whole at any moment. They are told anew soon after each start."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from skep.datapath.base import LocalState

log = logging.getLogger(__name__)


def read_local(file: Path) -> LocalState:
    try:
        return msgspec.json.decode(file.read_bytes(), type=LocalState)
    except FileNotFoundError:
        pass
    except msgspec.MsgspecError as error:
        log.warning("%s is left aside: %s", file, error)
    return LocalState()


def write_local(file: Path, state: LocalState) -> None:
    """Names are the resolver's."""
    temporary = file.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(LocalState(networks=state.networks)))
    temporary.replace(file)
