"""The schedule of snapshots: one of each stream after half the replay's audio, few after any one step.

A stream's first snapshot comes at a moment of its own within the spacing, so that streams that came
together, or were taken over together, are spread evenly from then on. Snapshots that fall due together all
the same wait in line. After a step at most `MAX_AFTER_STEP` are taken, and on average they take no more than
`SHARE` of the time, in which the engine's thread launches no step. So the spacing of a stream's snapshots may
grow from half the replay up to `LATEST` of it; a snapshot that is as late is taken whatever the share. A
stream in a running step lets others go first, since its snapshot would wait for the device. A late snapshot
loses nothing: the audio since the last one is kept until there is a newer one, and a takeover only decodes
more of it.

A Redis at its limit of memory takes no audio, so no stream comes to its next snapshot, and only snapshots
free memory. So they are hurried there: streams are due after a second of audio.

Entries of the audio log that have no samples (`finalize`, `phrases`) count as audio of their size: they are
kept until a snapshot, too, and clients choose their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from common.entries import StreamId, mark_bytes
from common.phrases import Phrase
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE

SHARE: Final = 0.2
MAX_AFTER_STEP: Final = 8
HURRIED_S: Final = 1
_SAMPLE_BYTES: Final = 2
# As shares of the audio that is kept for a replay.
_DUE: Final = 0.5
LATEST: Final = 0.9
# The fractional parts of its multiples are spread evenly, whatever their number.
_GOLDEN: Final = 0.6180339887498949
# Unused time is saved up to this, which is enough for a few snapshots at once.
_MOST_CREDIT_S: Final = 0.05
# Streams in line that are checked after a step.
_MOST_LOOKED_AT: Final = 32


class CheckpointQueue:
    """Streams in the order in which their snapshots fell due.

    Args:
        replay_s: audio that is kept for a replay, in seconds.
        clock: returns monotonic seconds.
    """

    def __init__(self, replay_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        samples = replay_s * ENGINE_SAMPLE_RATE
        self._spacing, self._latest = int(_DUE * samples), int(LATEST * samples)
        self._clock = clock
        # Samples covered by each open stream's last snapshot (see `opened`), samples decoded of it, and the
        # same of the streams in line.
        self._taken: dict[StreamId, int] = {}
        self._decoded: dict[StreamId, int] = {}
        self._due: dict[StreamId, int] = {}
        self._credit_s, self._credited_at = 0.0, clock()

    def __len__(self) -> int:
        """Return the number of streams in line."""
        return len(self._due)

    def opened(self, stream: StreamId, samples: int) -> None:
        """Note that the stream goes on from a checkpoint at `samples`, 0 for a new stream.

        Its first snapshot falls due up to a spacing early, so that streams that came together spread.
        """
        self._taken[stream] = samples - int(self._spacing * (stream * _GOLDEN % 1.0))

    def taken(self, stream: StreamId, samples: int) -> None:
        """Note that the stream has a snapshot that covers `samples`."""
        self._taken[stream] = samples
        self._due.pop(stream, None)

    def put_off(self, stream: StreamId) -> None:
        """Note that there is no state to take now: the stream is due again with its next decoded audio."""
        self._due.pop(stream, None)

    def marked(self, stream: StreamId, phrases: Sequence[Phrase] = ()) -> None:
        """Count an entry without samples, with the phrases that it carries."""
        if stream in self._taken:
            self._taken[stream] -= mark_bytes(phrases) // _SAMPLE_BYTES

    def drop(self, stream: StreamId) -> None:
        """Forget a stream of which no state is to be taken any more."""
        self._taken.pop(stream, None)
        self._decoded.pop(stream, None)
        self._due.pop(stream, None)

    def decoded(self, stream: StreamId, samples: int) -> None:
        """Note how many samples of the stream are decoded; queue the stream if it is due."""
        taken = self._taken.get(stream)  # None for a stream whose end has reached the engine
        if taken is None:
            return
        self._decoded[stream] = samples
        if samples - taken >= self._spacing:
            self._due[stream] = samples

    def hurry(self) -> None:
        """Queue every stream that has decoded `HURRIED_S` or more since its last snapshot, the most first."""
        since = {stream: samples - self._taken[stream] for stream, samples in self._decoded.items()}
        for stream in sorted(since, key=since.__getitem__, reverse=True):
            if since[stream] >= HURRIED_S * ENGINE_SAMPLE_RATE:
                self._due[stream] = self._decoded[stream]

    def next_ones(self, is_under_way: Callable[[StreamId], bool]) -> Iterator[StreamId]:
        """Yield the streams whose snapshots are to be taken now; the time until the next call is counted.

        The caller calls `taken`, `put_off` or `drop` for each stream before it goes on to the next.

        is_under_way: returns whether a stream's snapshot would wait for the device.
        """
        now = self._clock()
        earned = self._credit_s + SHARE * (now - self._credited_at)
        self._credit_s, self._credited_at = min(_MOST_CREDIT_S, earned), now
        num_taken = 0
        for stream in list(islice(self._due, _MOST_LOOKED_AT)) if self._due else ():
            late = self._due[stream] - self._taken[stream] >= self._latest
            if not late:
                if self._credit_s <= 0:
                    return
                if is_under_way(stream):
                    continue
            yield stream
            then = self._clock()
            self._credit_s, now = self._credit_s - (then - now), then
            num_taken += 1
            if num_taken == MAX_AFTER_STEP:
                return
