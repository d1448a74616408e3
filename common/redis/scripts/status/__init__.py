"""What the status line adds up, and what a process finds out about a server."""

from __future__ import annotations

from collections.abc import Sequence

from common.redis.keys import ASSIGNMENT_GROUP, Keys
from common.redis.scripts import Command, run


def share(keys: Keys, *, look_ms: int) -> Command:
    """Take a turn at the status line.

    Replies {the line that is kept, 0}, or {None, ms that another one's turn lasts, 0 where it is ours}.
    """
    return run("status/share", (keys.status_line, keys.status_turn), look_ms)


def num_owned(assignments: bytes) -> Command:
    """How many streams of a shard have an owner."""
    return run("status/num_owned", (assignments,), ASSIGNMENT_GROUP)


def backlog(audio: bytes) -> Command:
    """{entries not delivered, entries delivered and not acknowledged} of a stream's audio."""
    return run("status/backlog", (audio,))


def refused(calls: Sequence[str]) -> Command:
    """{numbers, from 1, of calls that are not allowed, numbers of those that the server does not know}."""
    return run("status/refused", (), *calls)
