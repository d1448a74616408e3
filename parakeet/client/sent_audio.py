"""The audio of a client's stream, kept from `send` until it is not needed again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from common.messages import Audio, Encoding

# One message of audio; longer sends are cut. Well below a server's bound of a line, as base64.
MAX_MESSAGE_AUDIO_BYTES: Final = 32 * 1024
# Audio that may wait for the socket before the caller waits.
_MAX_UNWRITTEN_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Block:
    """The audio of one message. first_sample: its position in the stream."""

    first_sample: int
    audio: Audio

    @property
    def end(self) -> int:
        return self.first_sample + len(self.audio.payload) // self.audio.encoding.sample_bytes

    def from_sample(self, sample: int) -> Audio:
        """Return the part of it from a sample of the stream on."""
        skip = max(0, sample - self.first_sample) * self.audio.encoding.sample_bytes
        return Audio(self.audio.payload[skip:], self.audio.encoding)


class SentAudio:
    """Blocks in order, and their progress in samples: taken from the caller, written, decoded.

    keep: whether audio stays until it is decoded, for another connection; else until it is written.
    """

    def __init__(self) -> None:
        self.keep = False
        self.written = 0
        self.decoded = 0
        self._end = 0
        self._blocks: deque[Block] = deque()
        self._odd = b""
        self._odd_encoding = Encoding.PCM16

    @property
    def ends_within_a_sample(self) -> bool:
        return bool(self._odd)

    @property
    def taken(self) -> int:
        """Number of samples taken from the caller."""
        return self._end

    @property
    def undecoded(self) -> int:
        """Number of samples that are written, and not decoded as far as the server has reported."""
        return self.written - self.decoded

    def cut(self, payload: bytes, encoding: Encoding) -> list[Block]:
        """Cut a payload into blocks to `append`; a part of a sample waits for the next payload.

        Raises ValueError when samples of another encoding follow a part of one.
        """
        if self._odd and encoding is not self._odd_encoding:
            raise ValueError("Samples of another encoding begin at a whole sample.")
        payload = self._odd + payload
        whole = len(payload) - len(payload) % encoding.sample_bytes
        payload, self._odd, self._odd_encoding = payload[:whole], payload[whole:], encoding
        return [
            Block(
                self._end + at // encoding.sample_bytes,
                Audio(payload[at : at + MAX_MESSAGE_AUDIO_BYTES], encoding),
            )
            for at in range(0, len(payload), MAX_MESSAGE_AUDIO_BYTES)
        ]

    def append(self, block: Block) -> None:
        """Take the next block."""
        self._blocks.append(block)
        self._end = block.end

    def next_block(self) -> Block | None:
        """Return the first block that is not wholly written."""
        return next((block for block in self._blocks if block.end > self.written), None)

    def wrote(self, block: Block) -> None:
        """Note that a block has been written."""
        self.written = block.end
        self._drop()

    def decoded_up_to(self, samples: int) -> None:
        """Note how many samples the server has decoded."""
        self.decoded = max(self.decoded, samples)
        self._drop()

    def has_room(self, sample_rate: int, window_s: float) -> bool:
        """Whether the caller may send more: audio that waits for the socket and kept audio are bounded."""
        if self._end - self.written > _MAX_UNWRITTEN_S * sample_rate:
            return False
        return not self.keep or self._end - self.decoded <= window_s * sample_rate

    def _drop(self) -> None:
        """Drop blocks that are not needed again."""
        needless = min(self.decoded, self.written) if self.keep else self.written
        while self._blocks and self._blocks[0].end <= needless:
            self._blocks.popleft()
