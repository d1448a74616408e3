"""The text of a stream, kept once beside the log of its results.

A result has only its new text (common/entries.py), and the log has only the last results. So the worker
appends new text to the kept text from time to time, long before the log drops the results that have it. A new
reader of a stream (an ingress for a client that resumes, a worker without a usable snapshot) reads the kept
text and the results after it.

The record states the end of the kept text: `text_seq` is the last result whose text is in it, `text_chars`
its number of code points.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from common.errors import EntryError
from common.redis.clients import REDIS_ERROR, AsyncRedis, error_of_stream
from common.redis.connect import pack
from common.redis.keys import RESULTS_MAX_BYTES, RESULTS_MAX_LENGTH, StreamKeys
from common.redis.scripts.ownership import keep_text
from common.redis.scripts.streams import kept_text

# The text is kept after this many results, or this many bytes of results: the log holds several times as
# much.
_KEEP_AFTER: Final = RESULTS_MAX_LENGTH // 8
_KEEP_AFTER_BYTES: Final = RESULTS_MAX_BYTES // 8
# Bytes of an entry of the log beside the body of its result.
_ENTRY_BYTES: Final = 40


@dataclass(frozen=True, slots=True)
class KeptText:
    """The kept text of a stream, and the last result whose text is in it; 0 for no result."""

    seq: int
    text: str


async def read_kept_text(redis: AsyncRedis, keys: StreamKeys) -> KeptText:
    """Read the kept text of a stream. Raises RedisUnavailable, EntryError."""
    server = redis.servers.server_of_shard(keys.shard)
    try:
        seq, text = await redis.execute(server, *kept_text(keys))
        return KeptText(int(seq), text.decode())
    except (REDIS_ERROR, OSError) as error:
        raise error_of_stream(error) from error
    except ValueError as error:
        raise EntryError(f"The text of stream {keys.stream} cannot be read: {error!r}") from error


class ResultLog:
    """The owner's account of a stream's log of results and of its kept text; for one thread.

    chars: code points of the text of the last result.
    """

    __slots__ = (
        "_cut",
        "_kept_bytes",
        "_kept_chars",
        "_kept_seq",
        "_logged_bytes",
        "_sizes",
        "_text",
        "_unkept",
        "_unkept_bytes",
        "chars",
    )

    def __init__(self, *, chars: int, kept_seq: int, kept_chars: int, kept_bytes: int) -> None:
        self.chars = chars
        self._text: str | None = None if chars else ""
        self._kept_seq = kept_seq
        self._kept_chars = kept_chars
        self._kept_bytes = kept_bytes
        # Sizes of the newest results, as many as fit into the log's limit of bytes. The sizes of an earlier
        # owner's results are not known, only that they fitted.
        self._sizes: deque[int] = deque()
        if kept_seq or chars:
            self._sizes.extend([RESULTS_MAX_BYTES // RESULTS_MAX_LENGTH] * RESULTS_MAX_LENGTH)
        self._logged_bytes = sum(self._sizes)
        self._cut = False  # the limit of bytes keeps the log below its limit of results
        self._unkept = self._unkept_bytes = 0

    def text_from(self, text: str) -> int:
        """Return where the new text of a result begins in its whole text, after the part in common."""
        before, self._text = self._text, text
        chars, self.chars = self.chars, len(text)
        if before is text or before is None or text.startswith(before):
            return chars
        # An engine without its snapshot may decode the last words differently from the previous engine.
        same = next((at for at, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(text))
        if same < self._kept_chars:
            self._kept_chars, self._kept_bytes = same, len(text[:same].encode())
        return same

    def added(self, size: int) -> int:
        """Count a result of `size` bytes; return the number of results that the log then keeps."""
        sizes = self._sizes
        size += _ENTRY_BYTES
        sizes.append(size)
        self._logged_bytes += size
        if len(sizes) > RESULTS_MAX_LENGTH:
            self._logged_bytes -= sizes.popleft()
            self._cut = False
        while self._logged_bytes > RESULTS_MAX_BYTES and len(sizes) > 1:
            self._logged_bytes -= sizes.popleft()
            self._cut = True
        self._unkept += 1
        self._unkept_bytes += size
        return len(sizes) if self._cut else RESULTS_MAX_LENGTH

    @property
    def is_due(self) -> bool:
        """Whether the text should be kept up to the last result."""
        return self._unkept >= _KEEP_AFTER or self._unkept_bytes >= _KEEP_AFTER_BYTES

    def keep(self, keys: StreamKeys, epoch: int, seq: int) -> bytes | None:
        """Pack the command that keeps the text up to the last result, `seq`; None if there is no new text."""
        self._unkept = self._unkept_bytes = 0
        text = self._text
        if text is None or seq <= self._kept_seq:
            return None
        at, chars = self._kept_bytes, self._kept_chars
        new = text[chars:].encode()
        self._kept_seq, self._kept_chars, self._kept_bytes = seq, len(text), at + len(new)
        return pack(*keep_text(keys, epoch=epoch, at=at, text=new, seq=seq, chars=len(text)))

    def keep_all_again(self) -> None:
        """Note that Redis has lost kept text: the next command writes all of it."""
        self._kept_seq = self._kept_chars = self._kept_bytes = 0
        self._unkept = _KEEP_AFTER
