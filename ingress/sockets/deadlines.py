"""The deadlines of one connection.

They are for a stream that is not begun or has no audio, results left unread, a refused client's last chance,
and a silent client. They only tell the time: `Connection` acts when one has passed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ingress.sockets.peer import Peer

Passed = Callable[[], None]


class Deadline:
    """A time after which something is called, unless it is stopped before.

    seconds: from `start` on.
    """

    __slots__ = ("_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def start(self, passed: Passed) -> None:
        """Run from now on, also where it was running."""
        self.stop()
        self._run(self._seconds, passed)

    def stop(self) -> None:
        """Do not call anything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self, seconds: float, passed: Passed) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._over, passed)

    def _over(self, passed: Passed) -> None:
        self._timer = None
        passed()


class SilenceDeadline(Deadline):
    """A deadline that what comes from the client puts off, as do pauses in which it is not read.

    So that hearing a client costs no more than a note of the time, the timer is left to run, and looks
    at its end for how long the client has been silent.

    seconds: from `start`, or the last that was heard, on; 0 is never.
    """

    __slots__ = ("_peer",)

    def __init__(self, seconds: float, peer: Peer) -> None:
        super().__init__(seconds)
        self._peer = peer

    def start(self, passed: Passed) -> None:
        """Run from now on, also where it was running."""
        if self._seconds > 0:
            super().start(passed)

    def _over(self, passed: Passed) -> None:
        left = self._seconds - self._peer.silent_s
        if left > 0:
            self._run(left, passed)
        else:
            super()._over(passed)


class ProgressDeadline(Deadline):
    """A deadline that a client puts off by going on.

    seconds: in which it went on by less than `least`; 0 is never.   progress: returns how far it is.
    """

    __slots__ = ("_before", "_least", "_progress")

    def __init__(self, seconds: float, progress: Callable[[], float], least: float = 1) -> None:
        super().__init__(seconds)
        self._progress = progress
        self._least = least
        self._before = 0.0

    def start(self, passed: Passed) -> None:
        """Run from now on, also where it was running."""
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

    begin: since `hello`, until a stream begins.   silent: since the client was last heard.
    audio: since the stream began, and a second of audio came.
    unread: since the transport's buffer is full, and the client read some of it.
    refused: since the client was told that the cluster is full.

    heard_s: returns how much audio has come of the stream, in seconds.
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
        """Stop all: the connection is over."""
        self.begin.stop()
        self.audio.stop()
        self.unread.stop()
        self.refused.stop()
        self.silent.stop()
