"""Scripts for the status line, and for the check of a server."""

from __future__ import annotations

from collections.abc import Sequence

from common.redis.keys import ASSIGNMENT_GROUP, Keys
from common.redis.scripts import Command, run


def share(keys: Keys, *, look_ms: int) -> Command:
    """Read the kept status line, or take the turn to make it.

    Replies {the kept line, 0}, or {None, ms that another ingress's turn lasts, 0 if it is this one's turn}.
    """
    return run("status/share", (keys.status_line, keys.status_turn), look_ms)


def num_owned(assignments: bytes) -> Command:
    """Reply how many streams of a shard have an owner."""
    return run("status/num_owned", (assignments,), ASSIGNMENT_GROUP)


def backlog(audio: bytes) -> Command:
    """Reply {entries not delivered, entries delivered and not acknowledged} of a stream's audio."""
    return run("status/backlog", (audio,))


def refused(calls: Sequence[str]) -> Command:
    """Reply {numbers, from 1, of calls that are not allowed, numbers of calls unknown to the server}."""
    return run("status/refused", (), *calls)
