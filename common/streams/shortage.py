"""Shortage of memory in a Redis server: which streams append no more audio then.

At its limit a server refuses audio, whoever sends it: speakers in real time would wait for those who send
files. So from a part of the memory on, streams append nothing while workers have seconds of their audio to
decode. These streams lose nothing by it, their clients wait, and the rest of the memory is for workers and
for speakers in real time.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from common.redis.connect import pack
from common.redis.requirements import memory_share
from common.redis.scripts.admission import MEMORY_LIMIT

logger = logging.getLogger(__name__)

AHEAD_S: Final = 5.0
"""Audio in Redis that is not decoded, from which a stream waits. A live stream has less than a second."""

# The server is asked this often while audio is written, and with each commit once half of its memory is used.
_LOOK_EVERY_S: Final = 0.25
_EACH_TIME_FROM: Final = 0.5
_SAID_EVERY_S: Final = 60.0
_INFO: Final = pack(b"INFO", b"memory")


class Shortage:
    """The memory of one server, as the replies to its own commands tell. is_short: whether little is left."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._next_look = 0.0
        self._next_word = 0.0
        self.is_short = False

    def commands(self, now_s: float) -> tuple[bytes, ...]:
        """Return the packed command that asks for the memory, if it is time; `told` takes its reply."""
        return (_INFO,) if now_s >= self._next_look else ()

    def told(self, reply: Any, now_s: float) -> None:
        """Take the reply. A refusal, as of a user without the right, is no shortage."""
        share = memory_share(reply) if isinstance(reply, bytes) else 0.0
        self._next_look = now_s + (_LOOK_EVERY_S if share < _EACH_TIME_FROM else 0.0)
        self.is_short = share > MEMORY_LIMIT
        if self.is_short and now_s >= self._next_word:
            self._next_word = now_s + _SAID_EVERY_S
            logger.warning(
                "server %d of Redis has little memory left: streams with much audio there wait", self._server
            )
