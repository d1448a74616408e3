"""Pacing of clients that send faster than real time: such a client waits, and no other client does.

Live speech comes in real time. A program that sends a file over a live stream sends as fast as it can, over
as many streams as it may have, and a worker would serve each of them like a speaker's. So the lead of a
client over real time is counted over all of its streams on this ingress, ended streams included. Beyond a
permitted lead, the streams that are ahead are read no faster than a multiple of real time. Streams that
declare themselves as recordings (`recording`) are not counted: a worker serves them after the streams of
speakers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from ingress.auth.client import Client
from ingress.auth.proxies import counted_as

# A message may be as short as a millisecond: the pace is checked each time this much audio has come.
_LOOK_EVERY_S: Final = 1.0
# Lead over real time that a stream may have even where its client is too far ahead: a stuttering network is
# no flood, and a speaker does not wait for files that others send with the same key or from the same address.
_STUTTER_S: Final = 5.0


class Lead:
    """Audio that came ahead of real time, in seconds: a bucket that time empties."""

    __slots__ = ("_at_s", "ahead_s")

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s
        self.ahead_s = 0.0

    def pass_time(self, now_s: float, rate: float) -> None:
        """Let time pass; each second takes `rate` seconds of audio out of the bucket."""
        self.ahead_s = max(0.0, self.ahead_s - (now_s - self._at_s) * rate)
        self._at_s = now_s


class Pace:
    """The lead of one client over real time, over all of its streams.

    rate: seconds of audio that a stream may bring in a second.
    lead_s: permitted lead over that rate, in seconds of audio for each stream.
    is_leaving: whether a timer will check if the client can be forgotten.
    """

    __slots__ = ("_lead", "_lead_s", "_rate", "is_leaving", "num_streams", "who")

    def __init__(self, who: str, rate: float, lead_s: float, now_s: float) -> None:
        self._rate: Final = rate
        self._lead_s: Final = lead_s
        self._lead = Lead(now_s)
        self.who: Final = who
        self.num_streams = 0
        self.is_leaving = False

    def change_streams(self, change: int, now_s: float) -> None:
        """Add `change` streams, or subtract them where it is negative."""
        self._lead.pass_time(now_s, self._drain)
        self.num_streams += change

    def heard(self, audio_s: float, now_s: float, stream: Lead) -> float:
        """Count audio of one of the client's connections; return the seconds for which it has to wait."""
        stream.pass_time(now_s, self._rate)
        stream.ahead_s += audio_s
        self._lead.pass_time(now_s, self._drain)
        self._lead.ahead_s += audio_s
        too_far_s = self._lead.ahead_s - self._lead_s * self.num_streams
        if too_far_s <= 0 or stream.ahead_s <= _STUTTER_S:
            return 0.0
        return min(too_far_s / self._drain, (stream.ahead_s - _STUTTER_S) / self._rate)

    def settled_in_s(self, now_s: float) -> float:
        """Return the seconds until the client is not ahead any more, if it sends nothing."""
        self._lead.pass_time(now_s, self._drain)
        return self._lead.ahead_s / self._drain

    @property
    def _drain(self) -> float:
        """Seconds of audio that leave the bucket in a second."""
        return self._rate * max(1, self.num_streams)


class Paces:
    """The paces of all clients of an ingress, by key, or by address where there are no keys.

    rate, lead_s: see `Pace`; a rate of 0 turns pacing off.
    A client without streams is forgotten once it is not ahead any more.
    """

    def __init__(self, rate: float, lead_s: float, now_s: Callable[[], float] = monotonic) -> None:
        self._rate = rate
        self._lead_s = lead_s
        self._paces: dict[str, Pace] = {}
        self.now_s: Final = now_s
        self.num_waits = 0

    def __len__(self) -> int:
        return len(self._paces)

    def enter(self, who: str, num_streams: int) -> Pace | None:
        """Count new streams of a client and return its pace; None where pacing is off."""
        if not self._rate:
            return None
        now_s = self.now_s()
        pace = self._paces.get(who)
        if pace is None:
            pace = self._paces[who] = Pace(who, self._rate, self._lead_s, now_s)
        pace.change_streams(num_streams, now_s)
        return pace

    def leave(self, pace: Pace, num_streams: int) -> None:
        """Subtract ended streams."""
        pace.change_streams(-num_streams, self.now_s())
        if not pace.is_leaving:  # one timer is enough, however often it comes and goes
            self._forget(pace)

    def _forget(self, pace: Pace) -> None:
        pace.is_leaving = False
        if pace.num_streams:
            return
        left_s = pace.settled_in_s(self.now_s())
        if left_s > 0:
            pace.is_leaving = True
            asyncio.get_running_loop().call_later(left_s, self._forget, pace)
        else:
            del self._paces[pace.who]


UNPACED: Final = Paces(0.0, 0.0)


class Pacer:
    """Keeps one connection to its client's pace.

    pause: called to stop reading the client.   resume: called to read it again.
    """

    __slots__ = (
        "_address",
        "_heard_s",
        "_lead",
        "_num_streams",
        "_pace",
        "_paces",
        "_pause",
        "_resume",
        "_timer",
    )

    def __init__(
        self, paces: Paces, address: str, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._paces = paces
        self._address = address
        self._pause = pause
        self._resume = resume
        self._pace: Pace | None = None
        self._lead = Lead(0.0)
        self._num_streams = 0
        self._heard_s = 0.0  # audio that is not counted yet
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether the client is not read because it is too far ahead."""
        return self._timer is not None

    def begin(self, client: Client | None, num_streams: int) -> None:
        """Count live streams, which begin or are resumed here."""
        who = counted_as(self._address) if client is None or client.key_id is None else client.key_id
        self._num_streams = num_streams
        self._pace = self._paces.enter(who, num_streams)
        self._lead = Lead(self._paces.now_s())

    def heard(self, audio_s: float) -> None:
        """Count audio of a connection, each of its streams by itself."""
        if self._pace is None:
            return
        self._heard_s += audio_s
        if self._heard_s < _LOOK_EVERY_S or self._timer is not None:
            return
        wait_s = self._count(self._pace)
        if wait_s > 0:
            self._paces.num_waits += 1
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._over)
            self._pause()

    def close(self) -> None:
        """Note that the streams are over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pace, self._pace = self._pace, None
        if pace is not None:
            self._count(pace)
            self._paces.leave(pace, self._num_streams)

    def _count(self, pace: Pace) -> float:
        audio_s, self._heard_s = self._heard_s, 0.0
        return pace.heard(audio_s, self._paces.now_s(), self._lead)

    def _over(self) -> None:
        self._timer = None
        self._resume()
