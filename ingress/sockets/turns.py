"""Turns: all work but that of live streams waits here, so that live streams never wait for it.

A live stream sends little at a time, and is served at once. New connections, plain HTTP and clients that send
much in one moment have turns instead: one after the other, few in a round of the event loop, and for a share
of its thread's time that does not grow with their number. So a crowd of any size costs live streams the same.

The share bounds the work that leads to no stream. A connection on which a stream begins has its charge
refunded: clients that another ingress has lost come in as fast as they can be served, and clients that never
begin a stream do not. Audio that a stream accepts pays for the turn in which it came, so that recordings come
in as fast as workers take them.

The constants are estimates by sampling, on one core of 2.5 GHz. If they are too low, a crowd has somewhat
more than its share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic, thread_time
from typing import Final

SHARE: Final = 0.1
"""Largest share of the thread's time for turns, while more turns are waiting."""
BURST_S: Final = 0.25
"""Seconds of the thread's time that turns may use at once after a quiet while, for example for the clients
that another ingress has lost."""
OPENING_S: Final = 0.0004
"""Estimated cost in seconds of a connection or a request outside its opening turn: its tasks, its answer, its
end."""
HANDSHAKE_S: Final = 0.001
"""Estimated seconds that TLS adds to the opening of a connection."""
READ_S_PER_BYTE: Final = 0.4e-9
"""Estimated seconds to read a byte, before it is parsed."""
AUDIO_S: Final = 0.0002
"""Seconds that a second of audio may cost in a turn: about its cost in messages of 100 ms."""

# Estimated cost of the opening's own turns: accepting it, and parsing its request.
_OPENING_TURNS_S: Final = 0.0002
# Turns in a row before live streams are served again.
_ROUND_S: Final = 0.001
# Longest pause between two rounds, whatever was charged.
_MAX_PAUSE_S: Final = 0.25

Turn = Callable[[], None]


class Turns:
    """Calls turns in the order in which they were asked for.

    share: share of the thread's time, 1 for all of it.   now_s, cpu_s: clocks of the time and of the thread.
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
        self._asked = False  # whether a round is scheduled
        self._pause: asyncio.TimerHandle | None = None  # the pause before that round
        self._balance_s = BURST_S  # time left before the next pause; negative if too much was used
        self._looked_at_s = now_s()
        self._earned_s = 0.0  # time earned in the running turns

    @property
    def num_waiting(self) -> int:
        """Number of turns that were asked for and not called yet."""
        return len(self._waiting)

    def at_once(self, turn: Turn) -> bool:
        """Call `turn` now if no other waits and the share is not used up; return whether it was called."""
        if self._waiting or self._look() <= 0:
            return False
        began_s = self._cpu_s()
        try:
            turn()
        finally:
            self._charge_since(began_s)
        return True

    def ask(self, turn: Turn) -> None:
        """Schedule `turn` for a later round of the event loop."""
        self._waiting.append(turn)
        self._next_round()

    def charge(self, cpu_s: float) -> None:
        """Charge time that a turn causes after its end."""
        self._balance_s -= cpu_s

    def earn(self, audio_s: float) -> None:
        """Reduce the cost of the running turn: streams accepted so much audio in it."""
        self._earned_s += audio_s * AUDIO_S

    def _charge_since(self, began_s: float) -> None:
        used_s, earned_s, self._earned_s = self._cpu_s() - began_s, self._earned_s, 0.0
        self.charge(max(0.0, used_s - earned_s))

    def began(self, *, tls: bool) -> None:
        """Refund the charge of a connection: a live stream has begun, or was resumed, on it."""
        self._balance_s += OPENING_S + _OPENING_TURNS_S + (HANDSHAKE_S if tls else 0.0)
        if self._pause is not None and self._look() > 0:
            self._pause.cancel()
            self._pause = None
            asyncio.get_running_loop().call_soon(self._round)

    def _look(self) -> float:
        """Update the balance to the present, and return it."""
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
            for _ in range(len(self._waiting)):  # turns asked for in this round wait for the next
                self._waiting.popleft()()
                if self._now_s() >= end_s:
                    break
        finally:
            self._charge_since(began_s)
            self._asked = False
            self._next_round()
