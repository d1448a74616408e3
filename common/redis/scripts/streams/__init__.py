"""Scripts with which an ingress creates, reads, moves and withdraws a stream: on the stream's shard."""

from __future__ import annotations

from collections.abc import Iterable

from common.entries import LAYOUT_VERSION, IngressId
from common.redis.connect import Argument
from common.redis.keys import REGISTER_TTL_MS, StreamKeys
from common.redis.scripts import FORGOTTEN_NUMBERS, Command, run


def create(
    stream: StreamKeys,
    *,
    assignments: bytes,
    ttl_ms: int,
    anew: bool,
    epoch: int,
    fields: Iterable[Argument],
) -> Command:
    """Create a stream with these record fields, names and values flat. Replies 0 if it exists already.

    anew: whether Redis has lost it, and its owners may live. epoch: beyond theirs then, else 0.
    """
    return run(
        "streams/create",
        (stream.meta, stream.audio, assignments),
        *(ttl_ms, REGISTER_TTL_MS, stream.stream, LAYOUT_VERSION, int(anew), epoch, *fields),
    )


def live(assignments: bytes) -> Command:
    """Return the assignments of a shard."""
    return run("streams/live", (assignments,))


def read(stream: StreamKeys) -> Command:
    """Return a stream's record, names and values flat; empty for one that is gone."""
    return run("streams/read", (stream.meta,))


def withdraw(stream: StreamKeys) -> Command:
    """Withdraw a stream that no worker has claimed. Replies 0 if a worker has."""
    return run("streams/withdraw", (stream.meta, stream.audio, stream.results))


def attach(
    stream: StreamKeys,
    *,
    ingress: IngressId,
    expected: tuple[IngressId, int] | None,
    tokens: tuple[str, str] | None,
) -> Command:
    """Move a stream to another ingress. Replies the number of the new connection, 0 if it was not moved.

    expected: the ingress and the connection that it must have, None for any.
    tokens: hashes of the token that its client has shown, and of the one that the client gets; -1 comes back
    where the first is not the stream's. None where nobody has shown one.
    """
    before, connection = ("", 0) if expected is None else expected
    shown, new = ("", "") if tokens is None else tokens
    return run("streams/attach", (stream.meta,), ingress, before, connection, FORGOTTEN_NUMBERS, shown, new)


def attach_again(
    stream: StreamKeys, *, ingress: IngressId, connection: int, tokens: tuple[str, str] | None
) -> Command:
    """Repeat an `attach` that Redis has lost, unless the stream was attached again since.

    connection: what `attach` returned.
    tokens: hashes of the token that was good before, "" where it is no more, and of the client's; None where
    the client's is another connection's.

    1 comes back where it was forgotten.
    """
    before, token = ("", "") if tokens is None else tokens
    return run("streams/attach_again", (stream.meta,), ingress, connection, token, before)


def confirm(stream: StreamKeys, *, token: str) -> Command:
    """Make the stream's previous token invalid, unless its token is another by now than this hash."""
    return run("streams/confirm", (stream.meta,), token)


def kept_results(stream: StreamKeys, *, last_seq: int | None) -> Command:
    """Find the place behind a result, or before the last one for None; {} where there was none.

    Else {first number that is kept, last number, epoch in which the wanted results begin}.
    """
    return run("streams/kept_results", (stream.results,), "" if last_seq is None else last_seq)


def kept_text(stream: StreamKeys) -> Command:
    """Return the last result whose text is kept, b"0" for none, and the kept text."""
    return run("streams/kept_text", (stream.meta, stream.text))


def last_result(stream: StreamKeys) -> Command:
    """Return the last entry of a stream's results, as a list of none or one."""
    return run("streams/last_result", (stream.results,))


def last_audio_id(stream: StreamKeys) -> Command:
    """Return the id of the last entry that a stream's audio ever had; None for a stream that is gone."""
    return run("streams/last_audio_id", (stream.audio,))
