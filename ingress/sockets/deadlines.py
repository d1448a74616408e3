"""The deadlines of one connection.

They are for a stream that is not begun or has no audio, for unread results, for a refused client that may
resume, and for a silent client. A deadline only calls back: `Connection` acts when one has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ingress.sockets.peer import Peer

Passed = Callable[[], None]

_LATE_S: Final = 0.5
# A deadline that is over passes after another while, in which what has come is read: a short one, and longer
# where the loop has stood still.
_SETTLE_S: Final = 0.05
_GRACE_S: Final = 1.0


def came_late(timer: asyncio.TimerHandle) -> bool:
    """Return whether a timer that is over came so late that the loop must have stood still.

    Then what clients have sent meanwhile may be unread: uvloop calls timers before it reads.
    """
    return asyncio.get_running_loop().time() - timer.when() > _LATE_S


class Deadline:
    """A time after which something is called, unless it is stopped before.

    seconds: time from `start` on.
    """

    __slots__ = ("_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, passed: Passed) -> None:
        """Start, or start anew if it was running. passed: called when the deadline has passed."""
        self.stop()
        self._run(self._seconds, passed)

    def stop(self) -> None:
        """Stop: nothing is called any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self, seconds: float, passed: Passed) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._at_end, passed)

    def _at_end(self, passed: Passed) -> None:
        timer, loop = self._timer, asyncio.get_running_loop()
        if timer is not None and came_late(timer):
            self._timer = loop.call_later(_GRACE_S, self._at_end, passed)
        else:
            self._timer = loop.call_later(_SETTLE_S, self._settled, passed)

    def _settled(self, passed: Passed) -> None:
        self._timer = None
        self._over(passed)

    def _over(self, passed: Passed) -> None:
        passed()


class SilenceDeadline(Deadline):
    """A deadline for silence: data from the client postpones it, and so do pauses in which it is not read.

    Receiving data only notes the time, to cost little. The timer goes on running, and at its end computes how
    long the client has been silent.

    seconds: time from `start`, or from the last data, on; 0 for never.
    """

    __slots__ = ("_peer",)

    def __init__(self, seconds: float, peer: Peer) -> None:
        super().__init__(seconds)
        self._peer = peer

    def start(self, passed: Passed) -> None:
        """Start, or start anew if it was running. passed: called when the deadline has passed."""
        if self._seconds > 0:
            super().start(passed)

    def _over(self, passed: Passed) -> None:
        left = self._seconds - self._peer.silent_s
        if left > 0:
            self._run(left, passed)
        else:
            super()._over(passed)


class ProgressDeadline(Deadline):
    """A deadline that progress of the client postpones.

    seconds: time in which progress has to grow by `least`; 0 for never.   progress: returns the progress.
    """

    __slots__ = ("_before", "_least", "_progress")

    def __init__(self, seconds: float, progress: Callable[[], float], least: float = 1) -> None:
        super().__init__(seconds)
        self._progress = progress
        self._least = least
        self._before = 0.0

    def start(self, passed: Passed) -> None:
        """Start, or start anew if it was running. passed: called when the deadline has passed."""
        if self._seconds > 0:
            super().start(passed)

    def _run(self, seconds: float, passed: Passed) -> None:
        self._before = self._progress()
        super()._run(seconds, passed)

    def _over(self, passed: Passed) -> None:
        if self._progress() - self._before >= self._least:
            self._run(self._seconds, passed)
        else:
            super()._over(passed)


class Deadlines:
    """All deadlines of one connection.

    begin: from `hello` until a stream begins.   silent: from the last data of the client.
    audio: from the stream's begin, or the last second of audio.
    unread: from the time at which the transport's buffer filled, or the client last read some of it.
    refused: from the message to the client that the cluster is full.

    heard_s: returns the audio received from the client, in seconds.
    """

    __slots__ = ("audio", "begin", "refused", "silent", "unread")

    def __init__(
        self,
        peer: Peer,
        heard_s: Callable[[], float],
        *,
        begin_s: float,
        unread_s: float,
        refused_s: float,
        silent_s: float,
        audio_s: float,
    ) -> None:
        self.begin = Deadline(begin_s)
        self.audio = ProgressDeadline(audio_s, heard_s)
        self.unread = ProgressDeadline(unread_s, lambda: peer.acked_bytes)
        self.refused = Deadline(refused_s)
        self.silent = SilenceDeadline(silent_s, peer)

    def stop(self) -> None:
        """Stop all deadlines: the connection has ended."""
        self.begin.stop()
        self.audio.stop()
        self.unread.stop()
        self.refused.stop()
        self.silent.stop()
