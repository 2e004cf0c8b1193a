"""The errors that reach a user. One small tree, each with the HTTP status that Docker gives it.

`rpc` is the gRPC code whose prefix Docker puts before errors of the cluster store
(`rpc error: code = X desc = ...`); scripts look for these texts, so they are kept.
"""

from __future__ import annotations


class SkepError(Exception):
    """Base of all errors with a message for the user. `status` is the HTTP status, `message` one line without a trailing newline."""

    status = 500
    rpc = ""

    def __init__(self, message: str, *, rpc: str | None = None) -> None:
        super().__init__(message)
        self.text = message
        if rpc is not None:
            self.rpc = rpc

    @property
    def message(self) -> str:
        return f"rpc error: code = {self.rpc} desc = {self.text}" if self.rpc else self.text


class Invalid(SkepError):
    """What was asked is wrong in itself."""

    status = 400


class Unauthorized(SkepError):
    status = 401


class Forbidden(SkepError):
    status = 403


class NotFound(SkepError):
    status = 404


class Conflict(SkepError):
    status = 409


class OutOfSequence(SkepError):
    """The version sent is not the one that is stored."""

    status = 500
    rpc = "Unknown"

    def __init__(self, message: str = "update out of sequence") -> None:
        super().__init__(message)


class NotImplementedHere(SkepError):
    """Docker has it, skep refuses it; the message says why and what to do instead."""

    status = 501


class Unavailable(SkepError):
    """Not now, or not on this node."""

    status = 503


class StoreFailed(SkepError):
    """The cluster's state cannot be read or written: a full or failing disk. Fatal: what is in memory is no longer what is stored."""

    status = 500


class ConfigError(SkepError):
    """A setting that cannot be used: says which, where, and what to write instead."""

    status = 500
