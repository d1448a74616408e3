"""The text of a stream, kept once beside the log of its results.

A result carries only the text that is new with it (common/entries.py), and the log has only the last
results. So the worker puts the text behind what is kept of it from time to time, long before the log lets go
of the results that have it. Whoever comes to a stream anew (an ingress for a client that resumes, a worker
that cannot go on from a snapshot) takes the kept text and the results behind it.

The record says how far the kept text goes: `text_seq` is the last result whose text is in it, `text_chars`
its code points.
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

# The text is kept after so many results, or so many bytes of them: the log holds several times as much.
_KEEP_AFTER: Final = RESULTS_MAX_LENGTH // 8
_KEEP_AFTER_BYTES: Final = RESULTS_MAX_BYTES // 8
# What an entry of the log takes beside the body of its result.
_ENTRY_BYTES: Final = 40


@dataclass(frozen=True, slots=True)
class KeptText:
    """The kept text of a stream, and the last result whose text it has; 0 for none."""

    seq: int
    text: str


async def read_kept_text(redis: AsyncRedis, keys: StreamKeys) -> KeptText:
    """Read what is kept of a stream's text. Raises RedisUnavailable, EntryError."""
    server = redis.servers.server_of_shard(keys.shard)
    try:
        seq, text = await redis.execute(server, *kept_text(keys))
        return KeptText(int(seq), text.decode())
    except (REDIS_ERROR, OSError) as error:
        raise error_of_stream(error) from error
    except ValueError as error:
        raise EntryError(f"The text of stream {keys.stream} cannot be read: {error!r}") from error


class ResultLog:
    """What the owner of a stream knows of its log of results and of its kept text; for one thread.

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
        # Sizes of the newest results, so many as fit into the bytes that the log may have. Of those of an
        # earlier owner it is known only that they fitted.
        self._sizes: deque[int] = deque()
        if kept_seq or chars:
            self._sizes.extend([RESULTS_MAX_BYTES // RESULTS_MAX_LENGTH] * RESULTS_MAX_LENGTH)
        self._logged_bytes = sum(self._sizes)
        self._cut = False  # the log has fewer results than it may, for their bytes
        self._unkept = self._unkept_bytes = 0

    def text_from(self, text: str) -> int:
        """Where a result's new text begins, given its whole text: behind what both have in common."""
        before, self._text = self._text, text
        chars, self.chars = self.chars, len(text)
        if before is text or before is None or text.startswith(before):
            return chars
        # An engine that goes on without its snapshot may hear the last words otherwise than the one before.
        same = next((at for at, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(text))
        if same < self._kept_chars:
            self._kept_chars, self._kept_bytes = same, len(text[:same].encode())
        return same

    def added(self, size: int) -> int:
        """Count a result of so many bytes; return how many results the log keeps with it."""
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
        """Pack the command that keeps the text up to the last result, `seq`; None where nothing is new."""
        self._unkept = self._unkept_bytes = 0
        text = self._text
        if text is None or seq <= self._kept_seq:
            return None
        at, chars = self._kept_bytes, self._kept_chars
        new = text[chars:].encode()
        self._kept_seq, self._kept_chars, self._kept_bytes = seq, len(text), at + len(new)
        return pack(*keep_text(keys, epoch=epoch, at=at, text=new, seq=seq, chars=len(text)))

    def keep_all_again(self) -> None:
        """Redis has forgotten of the kept text: the next command writes all of it."""
        self._kept_seq = self._kept_chars = self._kept_bytes = 0
        self._unkept = _KEEP_AFTER
