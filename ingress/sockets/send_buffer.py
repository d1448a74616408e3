"""What waits for a client that does not read as fast as results come.

While the socket takes data, messages pass straight through. Otherwise they wait here: neighbouring
partial results become one, which says all that they said, and everything else keeps its place. So a
reader that is merely slow loses nothing but intermediate texts, and one that does not read at all
costs bounded memory until it is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

from common.errors import ClientFault, ErrorCode


def merge_results(earlier: bytes, later: bytes) -> bytes:
    """Merge two neighbouring partial `result` messages into one that covers both.

    The newest text, state and acknowledgement; `token_ids`, `confidence_scores`, `words` and
    `utterances` concatenated; `seq_first`..`seq` for the range; what only the earlier one has is kept.
    """
    first = orjson.loads(earlier)
    last = orjson.loads(later)
    merged = first | last
    for field in ("token_ids", "confidence_scores", "words", "utterances"):
        if field in merged:
            merged[field] = first.get(field, []) + last.get(field, [])
    merged["seq_first"] = first.get("seq_first", first["seq"])
    return orjson.dumps(merged)


@dataclass(slots=True)
class _Waiting:
    message: bytes
    mergeable: bool


# A message costs more than its bytes; counting this bounds the number of small ones too.
_OVERHEAD_BYTES: Final = 128
# Each result carries the whole transcript, and after hours one is longer than the bound: a partial, a turn, a
# partial and the final result may wait all the same, up to a bound that only a flood of text reaches.
_FEW: Final = 4
_FEW_TIMES_MAX: Final = 16


class SendBuffer:
    """Order and bound of the messages to one client.

    write: hands one message to the transport.
    max_bytes: bound of what waits here, after merging; the transport's own buffer comes on top. Four messages
        may be longer than that, up to 16 times.
    """

    __slots__ = ("_bytes", "_max_bytes", "_open", "_waiting", "_write")

    def __init__(self, write: Callable[[bytes], None], max_bytes: int) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._open = True

    def send(self, message: bytes, *, mergeable: bool = False) -> None:
        """Send one message, now or when the client has read what came before.

        mergeable: a partial result, which may be merged with a neighbour of its kind.
        Raises ClientFault `slow_reader` when more waits than allowed; nothing of it is lost by then,
        and nothing more can be kept.
        """
        if self._open and not self._waiting:
            self._write(message)
            return
        last = self._waiting[-1] if self._waiting else None
        if mergeable and last is not None and last.mergeable:
            self._bytes -= len(last.message)
            last.message = merge_results(last.message, message)
            self._bytes += len(last.message)
        else:
            self._waiting.append(_Waiting(message, mergeable))
            self._bytes += len(message) + _OVERHEAD_BYTES
        if self._bytes > self._max_bytes and self._too_much():
            raise ClientFault(
                ErrorCode.SLOW_READER,
                f"More than {self._max_bytes} bytes of results wait to be read.",
            )

    def _too_much(self) -> bool:
        return len(self._waiting) > _FEW or self._bytes > self._max_bytes * _FEW_TIMES_MAX

    def pause(self) -> None:
        """The transport's buffer is full: keep messages here."""
        self._open = False

    def resume(self) -> None:
        """The transport takes data again; it may call `pause` while this writes."""
        self._open = True
        while self._open and self._waiting:
            waiting = self._waiting.popleft()
            self._bytes -= len(waiting.message) + _OVERHEAD_BYTES
            self._write(waiting.message)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self._bytes = 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits here."""
        return not self._waiting

    @property
    def waiting_bytes(self) -> int:
        """Size of what waits here, each message's overhead included."""
        return self._bytes
