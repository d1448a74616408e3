"""Whose turn it is: what is not a live stream waits here, so that live streams never wait for it.

A live stream says little at a time, and is heard at once. New connections, plain HTTP and clients that send
much in one moment have turns instead: one after the other, few in a round of the event loop, and for a share
of its thread's time that does not grow with their number. So any crowd of them costs live streams the same.

The share bounds what comes to nothing. A connection on which a stream begins gets back what it was charged:
the clients that another ingress has lost come in as fast as they can be served, and who never begins a stream
does not. Audio that a stream takes pays for the turn in which it came, so that recordings come in as fast as
workers take them.

The constants are estimates by sampling, on one core of 2.5 GHz. Where they are too low, a crowd has somewhat
more than its share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic, thread_time
from typing import Final

SHARE: Final = 0.1
"""Share of the thread's time that turns have, if more is asked for."""
BURST_S: Final = 0.25
"""Seconds of the thread's time that turns have at once after a quiet while, as for the clients that another
ingress has lost."""
OPENING_S: Final = 0.0004
"""What a connection or a request costs behind the turn in which it was opened, about: tasks, its answer, its
end."""
HANDSHAKE_S: Final = 0.001
"""What TLS adds to the opening of a connection, about."""
READ_S_PER_BYTE: Final = 0.4e-9
"""What reading costs before anybody sees what came, about."""
AUDIO_S: Final = 0.0002
"""What a second of audio may cost in a turn: about what it does in messages of 100 ms."""

# What the turns of an opening cost themselves, about: it is accepted, and its request is parsed.
_OPENING_TURNS_S: Final = 0.0002
# Turns that follow each other before live streams are looked at again.
_ROUND_S: Final = 0.001
# Between two rounds, whatever was charged.
_MAX_PAUSE_S: Final = 0.25

Turn = Callable[[], None]


class Turns:
    """Gives turns in the order in which they are asked for.

    share: of the thread's time, 1 for all of it.   now_s, cpu_s: the time, and that of this thread.
    """

    __slots__ = (
        "_asked",
        "_balance_s",
        "_cpu_s",
        "_earned_s",
        "_looked_at_s",
        "_now_s",
        "_pause",
        "_share",
        "_waiting",
    )

    def __init__(
        self,
        share: float = SHARE,
        *,
        now_s: Callable[[], float] = monotonic,
        cpu_s: Callable[[], float] = thread_time,
    ) -> None:
        self._share = share
        self._now_s = now_s
        self._cpu_s = cpu_s
        self._waiting: deque[Turn] = deque()
        self._asked = False  # a round is on its way
        self._pause: asyncio.TimerHandle | None = None  # before that round
        self._balance_s = BURST_S  # that may be used before the next pause; negative where too much was
        self._looked_at_s = now_s()
        self._earned_s = 0.0  # in the turns that run

    @property
    def num_waiting(self) -> int:
        """Turns that were asked for and have not come."""
        return len(self._waiting)

    def at_once(self, turn: Turn) -> bool:
        """Call `turn` now where nobody waits and the share is not used up; returns whether it was called."""
        if self._waiting or self._look() <= 0:
            return False
        began_s = self._cpu_s()
        try:
            turn()
        finally:
            self._charge_since(began_s)
        return True

    def ask(self, turn: Turn) -> None:
        """Have `turn` called in a later round of the event loop."""
        self._waiting.append(turn)
        self._next_round()

    def charge(self, cpu_s: float) -> None:
        """Count time that is used behind a turn, because of it."""
        self._balance_s -= cpu_s

    def earn(self, audio_s: float) -> None:
        """Have the turn that runs cost less: streams took so much audio in it."""
        self._earned_s += audio_s * AUDIO_S

    def _charge_since(self, began_s: float) -> None:
        used_s, earned_s, self._earned_s = self._cpu_s() - began_s, self._earned_s, 0.0
        self.charge(max(0.0, used_s - earned_s))

    def began(self, *, tls: bool) -> None:
        """Give back what a connection was charged: a live stream has begun on it, or goes on there."""
        self._balance_s += OPENING_S + _OPENING_TURNS_S + (HANDSHAKE_S if tls else 0.0)
        if self._pause is not None and self._look() > 0:
            self._pause.cancel()
            self._pause = None
            asyncio.get_running_loop().call_soon(self._round)

    def _look(self) -> float:
        """Bring the balance up to now."""
        now_s = self._now_s()
        self._balance_s = min(BURST_S, self._balance_s + (now_s - self._looked_at_s) * self._share)
        self._looked_at_s = now_s
        return self._balance_s

    def _next_round(self) -> None:
        if self._asked or not self._waiting:
            return
        self._asked = True
        loop = asyncio.get_running_loop()
        balance_s = self._look()
        if balance_s > 0:
            loop.call_soon(self._round)
        else:
            self._balance_s = max(balance_s, -_MAX_PAUSE_S * self._share)
            self._pause = loop.call_later(-self._balance_s / self._share, self._round)

    def _round(self) -> None:
        self._pause = None
        end_s, began_s = self._now_s() + _ROUND_S, self._cpu_s()
        try:
            for _ in range(len(self._waiting)):  # who asks again in this round waits for the next
                self._waiting.popleft()()
                if self._now_s() >= end_s:
                    break
        finally:
            self._charge_since(began_s)
            self._asked = False
            self._next_round()
