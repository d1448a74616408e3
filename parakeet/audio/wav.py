"""Reads WAV files of all common kinds; Python's `wave` supports different ones in each version.

Any number of channels, and every kind of sample that `common.wav_head` knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from common.mixer import Mixer
from common.wav_head import BadWav, UnknownWavFormat, read_wav_head
from parakeet.audio.byte_input import ByteInput
from parakeet.audio.errors import BadAudio
from parakeet.audio.pcm import RateFit, from_bytes, to_bytes

_BLOCK_S: Final = 0.25


class WavSource:
    """The samples of one WAV file as mono pcm16 blocks.

    rate: rate of the blocks, Hz.   seconds: length as the file states it, None where it does not.
    problem: after the last block, a sentence about a fault of the file; None for none.
    """

    def __init__(self, data: ByteInput) -> None:
        """Read up to the samples. Raises BadAudio, and UnknownWavFormat with nothing but the head read."""
        self._input = data
        self.problem: str | None = None
        try:
            self._format, self._size = read_wav_head(data, data.name)
        except UnknownWavFormat:
            raise
        except BadWav as error:
            raise BadAudio(str(error)) from None
        self._fit = RateFit(self._format.rate)
        self.rate: Final = self._fit.rate

    @property
    def seconds(self) -> float | None:
        """Length in seconds, where the head or the size of the file shows it."""
        size = self._size if self._size is not None else self._input.bytes_left
        return None if size is None else size / self._format.frame_bytes / self._format.rate

    def blocks(self) -> Iterator[bytes]:
        """Yield mono pcm16le; blocks while a pipe is silent. Raises BadAudio."""
        format_, mixer = self._format, Mixer(self._format.channels)
        block_bytes = max(1, int(format_.rate * _BLOCK_S)) * format_.frame_bytes
        left = self._size
        got = 0
        rest = b""
        while left is None or got < left:
            wanted = block_bytes - len(rest)
            data = self._input.read(wanted if left is None else min(wanted, left - got))
            if not data:
                break
            got += len(data)
            rest += data
            # A file's blocks are whole, so that they do not depend on how it was read.
            if self._input.bytes_left and len(rest) < block_bytes and (left is None or got < left):
                continue
            whole = len(rest) - len(rest) % format_.frame_bytes
            data, rest = rest[:whole], rest[whole:]
            samples = from_bytes(data, format_.kind, format_.sample_bytes, big_endian=format_.big_endian)
            yield to_bytes(self._fit.fit(mixer.mix(samples)))
        if left is not None and got < left:
            frames_a_second = format_.frame_bytes * format_.rate
            self.problem = (
                f"{self._input.name} is not whole: its header says {left / frames_a_second:.2f} s,"
                f" and {got / frames_a_second:.2f} s are there."
            )

    def close(self) -> None:
        """Close the file."""
        self._input.close()
