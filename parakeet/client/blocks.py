"""Converts a caller's audio of any type to an async iterator of blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable

Blocks = bytes | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes]
"""Samples: all at once, or in blocks that may be cut anywhere."""


async def as_async(blocks: Blocks) -> AsyncIterator[bytes]:
    """Yield the blocks. An iterable is read in a thread, since its next block may be a blocking read."""
    if isinstance(blocks, bytes | bytearray | memoryview):
        yield bytes(blocks)
    elif isinstance(blocks, AsyncIterable):
        async for block in blocks:
            yield block
    else:
        iterator = iter(blocks)
        while (following := await asyncio.to_thread(next, iterator, None)) is not None:
            yield following
