"""What our own protocol says of the samples that a client sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from common.messages import Encoding, Result
from common.options import StreamOptions
from parakeet.client import ClientTimeouts, connect

_TIMEOUTS: Final = ClientTimeouts(connect_s=10, silence_s=20, final_s=40, resume_s=5, send_s=20)


@dataclass(frozen=True, slots=True)
class Sent:
    """Audio of one stream: pieces, with a `finalize` between each two."""

    pieces: tuple[bytes, ...]
    rate: int
    encoding: Encoding = Encoding.PCM16

    @property
    def audio(self) -> bytes:
        return b"".join(self.pieces)


def native_text(url: str, key: str, sent: Sent) -> str:
    """Return the final text of a stream of our own protocol."""
    return asyncio.run(_native(url, key, sent)).text


async def _native(url: str, key: str, sent: Sent) -> Result:
    options = StreamOptions(sample_rate=sent.rate, encoding=sent.encoding.value)
    async with await connect(url, options=options, api_key=key, timeouts=_TIMEOUTS) as stream:
        for number, piece in enumerate(sent.pieces):
            if number:
                stream.finalize()
            await stream.send(piece)
        await stream.finish()
        return await stream.final()
