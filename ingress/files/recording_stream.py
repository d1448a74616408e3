"""Transcription of one recording, as a stream without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from common.captions.words_of_texts import words_of_texts
from common.entries import LineKind
from common.errors import StreamError
from common.messages import Audio, Result, Utterance, Word
from common.monitoring.families import RECORDING_FAILED
from common.options import StreamOptions
from ingress.backplane import CLIENT_GONE, NOBODY, Backplane, Caller, StreamLink

# Most audio of a recording that is appended and not decoded; more waits in the decoder.
_MAX_AHEAD_S: Final = 20.0
# A recording fails if the worker sends nothing for this long.
_STALL_S: Final = 60.0


@dataclass(slots=True)
class Transcript:
    """A finished transcript. words, utterances: with times in seconds. duration_s: length of the audio."""

    text: str = ""
    words: list[Word] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    duration_s: float = 0.0

    def words_of_utterances(self) -> Iterator[tuple[Utterance, list[Word]]]:
        """Yield each utterance with its words."""
        texts = [utterance.text for utterance in self.utterances]
        # Words after the last utterance, where the detector found no speech, are in no utterance.
        return zip(self.utterances, words_of_texts(self.words, texts), strict=False)


class Stalled(Exception):  # noqa: N818 - the name says it
    """The worker has sent nothing about the recording for too long."""


class RecordingStream:
    """Feeds one recording to the service and collects its results (a `StreamListener`).

    sample_rate: Hz. on_text: called with the whole text whenever it has grown.
    on_audio: called before each block is sent, with the length of the block and of all audio so far, in
    seconds; an exception from it ends the recording. begun: whether the service has accepted the stream.
    """

    def __init__(
        self,
        sample_rate: int,
        on_text: Callable[[str], None] = lambda _: None,
        on_audio: Callable[[float, float], None] = lambda _, __: None,
    ) -> None:
        self._rate = sample_rate
        self._on_text = on_text
        self._on_audio = on_audio
        self.begun = False
        self._sent_samples = 0
        self._acked_samples = 0
        self._error: StreamError | None = None
        self._ended = False
        self._has_room = True
        self._news = asyncio.Event()
        self.transcript = Transcript()

    @property
    def sent_s(self) -> float:
        """Audio that was appended, in seconds."""
        return self._sent_samples / self._rate

    async def run(
        self,
        backplane: Backplane,
        options: StreamOptions,
        blocks: AsyncIterator[bytes],
        caller: Caller = NOBODY,
    ) -> Transcript:
        """Transcribe 16-bit mono samples. Raises StreamError, Stalled, and the exceptions of `blocks`."""
        link: StreamLink | None = await backplane.admit(self, caller)
        assert link is not None
        code = CLIENT_GONE
        try:
            link.begin(options)
            self.begun = True
            async for block in blocks:
                await self._feed(link, Audio(block))
            await self._feed(link, Audio(b"", final=True))
            while not self._ended:
                await self._wait()
            link.release()
            link = None
        except StreamError as error:
            code = error.code.value
            raise
        except Exception:  # from `blocks`, or Stalled
            code = RECORDING_FAILED
            raise
        finally:
            if link is not None:
                link.abandon(keep=False, code=code)
        self.transcript.duration_s = self.sent_s
        return self.transcript

    async def _feed(self, link: StreamLink, audio: Audio) -> None:
        while not self._has_room or self.undecoded_s > _MAX_AHEAD_S:
            await self._wait()
        self._raise_if_failed()
        if audio.num_samples:
            end = self._sent_samples + audio.num_samples
            self._on_audio(audio.num_samples / self._rate, end / self._rate)
            self._sent_samples = end
        self._has_room = link.append(audio)

    async def _wait(self) -> None:
        """Wait for the next call of the service. Raises StreamError where it reports a failure."""
        self._raise_if_failed()
        self._news.clear()
        try:
            async with asyncio.timeout(_STALL_S):
                await self._news.wait()
        except TimeoutError:
            raise Stalled from None
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    # StreamListener

    @property
    def undecoded_s(self) -> float:
        """Audio that was appended and is not decoded yet, in seconds."""
        return (self._sent_samples - self._acked_samples) / self._rate

    def on_result(self, kind: LineKind, result: Result) -> None:
        """Collect a result."""
        self._acked_samples = max(self._acked_samples, result.audio_ack_samples)
        transcript = self.transcript
        transcript.words += result.words or ()
        transcript.utterances += result.utterances
        if result.text != transcript.text:
            transcript.text = result.text
            self._on_text(result.text)
        self._ended |= kind is LineKind.FINAL
        self._news.set()

    def on_error(self, error: StreamError) -> None:
        """Take the error with which a worker has ended the stream."""
        self.on_failure(error)

    def on_ack(self, samples: int) -> None:
        """Note progress that no result reports."""
        self._acked_samples = max(self._acked_samples, samples)
        self._news.set()

    def on_failure(self, error: StreamError) -> None:
        """End the stream, which cannot go on."""
        self._error = error
        self._news.set()

    def on_taken(self) -> None:
        """Never called: no client has the token that would resume this stream."""
        raise AssertionError("a recording was resumed")

    def on_room(self) -> None:
        """Note that there is room for audio again."""
        self._has_room = True
        self._news.set()
