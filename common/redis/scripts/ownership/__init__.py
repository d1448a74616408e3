"""Scripts with which workers claim, open, hand over and end a stream: on the stream's shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from common.entries import WorkerId
from common.redis.connect import Argument
from common.redis.keys import (
    ASSIGNMENT_GROUP,
    DEAD_LETTER_TTL_MS,
    FINISHED_STREAM_TTL_MS,
    READY_TTL_MS,
    REGISTER_TTL_MS,
    RESULTS_MAX_LENGTH,
    STAGED_SNAPSHOT_TTL_MS,
    StreamKeys,
)
from common.redis.scripts import FORGOTTEN_NUMBERS, Command, run

# Deaths of owners over the same audio after which a stream is a suspect, and runs in quarantine...
SUSPICIOUS_DEATHS: Final = 2
# ... and how many processes that ran it alone it may end before it is poison.
POISONOUS_DEATHS: Final = 2
# If suspects that run together end their process, the next group is smaller by this factor, and so on down to
# one. A larger factor would cost fewer deaths, each with the loading of a model, and more groups, each with a
# replay.
SUSPECTS_DIVISOR: Final = 8
# Entries of audio that are kept of a poison stream, at most 64 KiB each: the cause of the deaths is in the
# first ones.
_MAX_DEAD_ENTRIES: Final = 16


def open_stream(
    stream: StreamKeys,
    *,
    assignments: bytes,
    ready: bytes,
    worker: WorkerId,
    entry_id: bytes,
    together: int,
    chunk_ms: int,
) -> Command:
    """Make a worker the owner. Replies {b"gone"}, {b"lost"}, {b"suspect"}, or the parts of `OwnedStream`.

    These are {b"owned", epoch, last seq, samples acknowledged so far, record, whether it is poison, bytes of
    kept text}.

    together: suspects that run in the worker's process, 0 for an ordinary one.
    chunk_ms: least audio of a step.
    """
    return run(
        "ownership/open",
        (assignments, stream.meta, stream.audio, stream.results, ready, stream.text),
        *(ASSIGNMENT_GROUP, worker, entry_id, stream.stream, READY_TTL_MS, together, chunk_ms),
        *(SUSPICIOUS_DEATHS, POISONOUS_DEATHS, SUSPECTS_DIVISOR, FORGOTTEN_NUMBERS, RESULTS_MAX_LENGTH),
    )


def finish(stream: StreamKeys, *, assignments: bytes, ready: bytes, entry_id: bytes, epoch: int) -> Command:
    """End a stream. Replies 1, or 0 if another worker owns it by now, or -1 if it had left Redis."""
    return run(
        "ownership/finish",
        (assignments, stream.meta, stream.audio, stream.results, stream.snapshot, ready, stream.text),
        *(ASSIGNMENT_GROUP, entry_id, stream.stream, epoch, FINISHED_STREAM_TTL_MS),
    )


def stage(staged: bytes, *, piece: bytes) -> Command:
    """Begin to write a snapshot."""
    return run("ownership/stage", (staged,), piece, STAGED_SNAPSHOT_TTL_MS)


def checkpoint(
    stream: StreamKeys,
    *,
    staged: bytes,
    epoch: int,
    first_kept: bytes,
    num_pieces: int,
    samples: int,
    seq: int,
    fields: Iterable[Argument],
) -> Command:
    """Make a staged snapshot valid, with these fields of the record, and trim the audio before `first_kept`.

    Replies 1, or 0 if the stream has ended, has another owner by now, or has a later checkpoint.
    """
    return run(
        "ownership/checkpoint",
        (stream.meta, stream.audio, stream.snapshot, staged),
        *(epoch, first_kept, num_pieces, samples, seq, *fields),
    )


def note_cold(stream: StreamKeys, *, epoch: int) -> Command:
    """Note that a stream goes on from its checkpoint without the snapshot. Replies 0 for another epoch."""
    return run("ownership/note_cold", (stream.meta,), epoch)


def keep_text(stream: StreamKeys, *, epoch: int, at: int, text: bytes, seq: int, chars: int) -> Command:
    """Keep a stream's text up to result `seq`.

    Replies 1, 0 where the epoch is another's, None where the text before byte `at` is gone.
    chars: code points of the kept text with this.
    """
    return run("ownership/keep_text", (stream.meta, stream.text), epoch, at, text, seq, chars)


def make_group(assignments: bytes) -> Command:
    """Create the group of the workers on a shard's assignments, if there is none."""
    return run("ownership/make_group", (assignments,), ASSIGNMENT_GROUP, REGISTER_TTL_MS)


def look(ready: Sequence[bytes], *, most: int) -> Command:
    """Take up to `most` streams out of the first ready set that has any. Replies as BZMPOP does."""
    return run("ownership/look", ready, most)


def beyond_limit(command: Sequence[Argument]) -> Command:
    """Return a command about a key so that a server takes it which is at its limit of memory; same reply."""
    name, key, *more = command
    assert isinstance(key, bytes)
    return run("ownership/beyond_limit", (key,), name, *more)


def take_over(assignments: bytes, *, of: WorkerId, to: WorkerId, count: int, first: bytes) -> Command:
    """Move pending assignments to another worker. Replies {last id read (empty at the end), entries}."""
    return run("ownership/take_over", (assignments,), ASSIGNMENT_GROUP, of, to, count, first)


def give(assignments: bytes, *, worker: WorkerId, heir: WorkerId, entry_id: bytes) -> Command:
    """Move one pending assignment to another worker. Replies 0 if it is not `worker`'s any more."""
    return run("ownership/give", (assignments,), ASSIGNMENT_GROUP, worker, heir, entry_id)


def let_go(stream: StreamKeys, *, epoch: int, cleared: bool) -> Command:
    """Note that no owner has died of a stream that changes hands; see `Claims.let_go`."""
    return run("ownership/let_go", (stream.meta,), epoch, int(cleared))


def owners(assignments: bytes) -> Command:
    """Reply the workers that have pending assignments of a shard, and how many: {{name, number}, ...}.

    Renews the expiry of the assignments.
    """
    return run("ownership/owners", (assignments,), ASSIGNMENT_GROUP, REGISTER_TTL_MS)


def remove_consumer(assignments: bytes, *, ready: bytes, worker: WorkerId) -> Command:
    """Remove a worker without streams from a shard. Replies 0 if it owns one after all."""
    return run("ownership/remove_consumer", (assignments, ready), ASSIGNMENT_GROUP, worker)


def keep_dead_letter(stream: StreamKeys, *, epoch: int) -> Command:
    """Keep the record of a poison stream. Replies 0 for another epoch."""
    return run(
        "ownership/keep_dead_letter",
        (stream.meta, stream.audio, stream.dead, stream.dead_audio),
        *(stream.stream, epoch, DEAD_LETTER_TTL_MS, _MAX_DEAD_ENTRIES),
    )
