"""When to take which stream's snapshot: one after half the replay's audio, few after any one step.

A stream's first snapshot comes at a moment of its own within the spacing, so that streams that came
together, or were taken over together, are spread evenly from then on.  What falls due together all the same
waits in line: after a step at most `MAX_AFTER_STEP` are taken, and on the average no more than `SHARE` of
the time goes into them, in which the engine's thread launches no step.  The spacing of a stream's snapshots
grows so, from half the replay up to `LATEST` of it; one that is as late is taken whatever the share.  A
stream that is in a step under way lets others go first: its snapshot would wait for the device.  Nothing is
lost by a late one: the audio since the last is kept until there is a newer, and a takeover only decodes
more of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from common.entries import StreamId
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE

SHARE: Final = 0.2
MAX_AFTER_STEP: Final = 8
# As shares of the audio that is kept for a replay.
_DUE: Final = 0.5
LATEST: Final = 0.9
# Its multiples, less their whole parts, are spread evenly whatever their number.
_GOLDEN: Final = 0.6180339887498949
# Time that was not used is saved up to this, enough for a few snapshots at once.
_MOST_CREDIT_S: Final = 0.05
# Streams in line that are looked at after a step.
_MOST_LOOKED_AT: Final = 32


class CheckpointQueue:
    """Streams in the order in which their snapshots fell due.

    Args:
        replay_s: audio that is kept for a replay.
        clock: seconds, monotonic.
    """

    def __init__(self, replay_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        samples = replay_s * ENGINE_SAMPLE_RATE
        self._spacing, self._latest = int(_DUE * samples), int(LATEST * samples)
        self._clock = clock
        # Samples covered by each open stream's last snapshot (see `opened`), and by what was decoded of
        # those in line.
        self._taken: dict[StreamId, int] = {}
        self._due: dict[StreamId, int] = {}
        self._credit_s, self._credited_at = 0.0, clock()

    def __len__(self) -> int:
        """Streams in line."""
        return len(self._due)

    def opened(self, stream: StreamId, samples: int) -> None:
        """Note that the stream goes on from a checkpoint at so many samples, 0 for a new one.

        Its first snapshot falls due up to a spacing early, so that streams that came together part.
        """
        self._taken[stream] = samples - int(self._spacing * (stream * _GOLDEN % 1.0))

    def taken(self, stream: StreamId, samples: int) -> None:
        """Note that the stream has a snapshot that covers so many samples."""
        self._taken[stream] = samples
        self._due.pop(stream, None)

    def drop(self, stream: StreamId) -> None:
        """Forget the stream, which is over."""
        self._taken.pop(stream, None)
        self._due.pop(stream, None)

    def decoded(self, stream: StreamId, samples: int) -> None:
        """So much of the stream is decoded; queues it when it is due."""
        taken = self._taken.get(stream)  # none for a stream whose end the engine knows already
        if taken is not None and samples - taken >= self._spacing:
            self._due[stream] = samples

    def next_ones(self, is_under_way: Callable[[StreamId], bool]) -> Iterator[StreamId]:
        """Streams to take snapshots of now, one by one; the time until the next is asked for is counted.

        The caller says `taken`, or `drop`, of each before it asks for another.

        is_under_way: whether a stream's snapshot would wait for the device.
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
