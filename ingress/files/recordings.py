"""All recordings that are uploaded to an ingress: bounded, counted for their keys, ended with their keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import ClientDisconnect

from common.auth.api_key import KeyId
from common.errors import ErrorCode, NoFreeStream, NoWorker, ParakeetError, RedisUnavailable, StreamError
from common.monitoring.families import RECORDING_FAILED
from common.monitoring.metrics import IngressMetrics
from common.options import StreamOptions
from common.phrases import Phrase
from ingress.auth.client import KEY_ENDED, Client
from ingress.auth.guard import Guard
from ingress.backplane import CLIENT_GONE, FINAL, Backplane, Caller
from ingress.files.recording_stream import RecordingStream, Transcript
from ingress.files.upload import BadUpload
from ingress.media.decoder import DecodedAudio, Decoders, DecodersBusy, MediaError, MediaInput

_ADMISSION: Final = {
    ErrorCode.NO_FREE_STREAM: "full",
    ErrorCode.NO_WORKER: "no_worker",
    ErrorCode.REDIS_UNAVAILABLE: "redis",
    ErrorCode.OVER_LIMIT: "over_limit",
}


class UploadsBusy(ParakeetError):  # noqa: N818 - the name says it
    """The bound on uploads that are held at once is reached."""


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """Limits of recordings.

    max_held: most uploads at once that are being received or decoded, which bounds the disk space.
    max_bytes: largest upload.   max_recording_s: longest audio of a recording.
    """

    max_held: int
    max_bytes: int
    max_recording_s: float


@dataclass(frozen=True, slots=True)
class RecordingHints:
    """What a client says of a recording: phrases that are likely, and the model's name of the language."""

    phrases: tuple[Phrase, ...] = ()
    language: str | None = None


_NO_HINTS: Final = RecordingHints()


class Recordings:
    """The recordings of an ingress.

    guard_of: returns the guard for a client's address.
    """

    def __init__(
        self,
        backplane: Backplane,
        decoders: Decoders,
        guard_of: Callable[[str], Guard],
        metrics: IngressMetrics,
        limits: RecordingLimits,
    ) -> None:
        self.backplane: Final = backplane
        self.decoders: Final = decoders
        self.metrics: Final = metrics
        self.limits: Final = limits
        self._guard_of = guard_of
        self._held: set[Recording] = set()

    @property
    def num_held(self) -> int:
        """Number of uploads that are held."""
        return len(self._held)

    @asynccontextmanager
    async def taken(self, client: Client, address: str) -> AsyncIterator[Recording]:
        """Hold a recording of a client, from before its first byte until it is answered.

        It is counted for the client's key first. Raises UploadsBusy, OverLimit or RedisUnavailable.
        """
        if self.num_held >= self.limits.max_held:
            self.metrics.recordings["busy"] += 1
            raise UploadsBusy(
                f"This server holds {self.limits.max_held} recordings at once; try again later."
            )
        guard = self._guard_of(address)
        recording = Recording(self, client, guard)
        self._held.add(recording)
        entered = False
        try:
            await guard.enter(client, 1)
            entered = True
            yield recording
        except BaseException as error:
            recording.failed(error)
            if isinstance(error, StreamError) and not entered:
                self.refused(error.code)
            raise
        finally:
            self._held.discard(recording)
            if entered:
                guard.leave(client, 1)
            self.metrics.recordings[recording.outcome] += 1

    def refused(self, code: ErrorCode) -> None:
        """Count a recording that has no stream."""
        self.metrics.errors[code.value] += 1
        outcome = _ADMISSION.get(code)
        if outcome is not None:
            self.metrics.admissions[outcome] += 1

    def expel(self, key_id: KeyId) -> None:
        """End the recordings of a key that has become invalid."""
        error = StreamError(ErrorCode.UNAUTHORIZED, KEY_ENDED)
        for recording in list(self._held):
            if recording.client.key_id == key_id:
                recording.end(error)


class Recording:
    """One recording, which is received and then transcribed.

    outcome: its end, for the metric.   begun: set once its audio goes to a worker.
    """

    def __init__(self, recordings: Recordings, client: Client, guard: Guard) -> None:
        self.client: Final = client
        self.max_bytes: Final = recordings.limits.max_bytes
        self.outcome = "client_gone"
        self.begun: Final = asyncio.Event()
        self._recordings = recordings
        self._metrics = recordings.metrics
        self._guard = guard
        self._error: StreamError | None = None
        self._stream: RecordingStream | None = None
        self._num_bytes = 0

    def announced(self, length: str | None) -> None:
        """Take the `Content-Length` of the upload, before its first byte. Raises BadUpload if too large."""
        if length is not None:
            self._check_size(int(length))

    def received(self, num_bytes: int) -> None:
        """Count bytes of the upload. Raises BadUpload if it is too large, StreamError if it was ended."""
        self._metrics.received_bytes["http"] += num_bytes
        self._num_bytes += num_bytes
        self._check_size(self._num_bytes)
        self._raise_if_ended()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            mib = self.max_bytes / (1 << 20)
            raise BadUpload(f"The upload is over {mib:g} MiB (--max-upload-mb).", "file", too_large=True)

    def end(self, error: StreamError) -> None:
        """End the recording, whether it is being received or transcribed."""
        self._error = error
        if self._stream is not None:
            self._stream.on_failure(error)

    def failed(self, error: BaseException) -> None:
        """Note the cause of a failure."""
        if self.outcome != "transcribed":
            self.outcome = _outcome_of(error)

    async def transcribed(
        self,
        media: MediaInput,
        hints: RecordingHints = _NO_HINTS,
        on_text: Callable[[str], None] = lambda _: None,
        *,
        traceparent: str = "",
    ) -> Transcript:
        """Decode and transcribe the received file.

        media: the file, and how to decode it to one channel. on_text: called with the text as it grows.
        traceparent: the trace that the request is a part of.
        Raises StreamError, MediaError, DecodersBusy, BadUpload or Stalled.
        """
        with self._being_transcribed():
            transcript, _ = await self._decoded(media, hints, on_text, traceparent)
            return transcript

    async def transcribed_apart(
        self, media: MediaInput, hints: RecordingHints = _NO_HINTS, *, traceparent: str = ""
    ) -> list[Transcript]:
        """Transcribe each channel by itself, one after the other, so that the recording takes one stream."""
        with self._being_transcribed():
            transcripts: list[Transcript] = []
            num_channels = 1
            while len(transcripts) < num_channels:
                channel = replace(media, mix=False, channel=len(transcripts))
                transcript, audio = await self._decoded(channel, hints, lambda _: None, traceparent)
                transcripts.append(transcript)
                num_channels = audio.channels
            return transcripts

    @contextmanager
    def _being_transcribed(self) -> Iterator[None]:
        """Note outcome and duration of a transcription."""
        began_s = time.monotonic()
        try:
            self._raise_if_ended()
            yield
        except BaseException as error:
            self.failed(error)
            raise
        self.outcome = "transcribed"
        self._metrics.recording_seconds.observe(time.monotonic() - began_s)

    async def _decoded(
        self, media: MediaInput, hints: RecordingHints, on_text: Callable[[str], None], traceparent: str
    ) -> tuple[Transcript, DecodedAudio]:
        client = self.client
        async with await self._recordings.decoders.start(media) as decoder:
            audio = await decoder.audio()
            self._raise_if_ended()
            stream = self._stream = RecordingStream(audio.rate, on_text, self._heard)
            options = StreamOptions(
                sample_rate=audio.rate,
                words=True,
                auto_finalize=True,
                phrases=hints.phrases,
                language=hints.language,
                recording=True,
            )
            caller = Caller(client.key_id or "", client.name, traceparent)
            code = CLIENT_GONE
            try:
                async with aclosing(_whole_samples(decoder.blocks())) as blocks:
                    transcript = await stream.run(self._recordings.backplane, options, blocks, caller)
                code = FINAL
            except StreamError as error:
                code = error.code.value
                raise
            except Exception:  # a fault of the media, or a worker that fell silent
                code = RECORDING_FAILED
                raise
            finally:
                self._count(stream, code)
            return transcript, audio

    def _heard(self, seconds: float, all_seconds: float) -> None:
        """Count audio on its way to the worker. Raises BadUpload or OverLimit where a limit is reached."""
        most_s = self._recordings.limits.max_recording_s
        if all_seconds > most_s:
            raise BadUpload(
                f"The recording is longer than {most_s:g} s (--max-recording-s).", "file", too_large=True
            )
        self._guard.check_audio(self.client)
        self._guard.heard(self.client, seconds)
        self._metrics.audio_seconds += seconds
        self.begun.set()

    def _count(self, stream: RecordingStream, code: str) -> None:
        """Count the recording's stream in the metrics, begun or refused."""
        metrics = self._metrics
        if not stream.begun:
            if code in metrics.errors:
                self._recordings.refused(ErrorCode(code))
            return
        metrics.admissions["admitted"] += 1
        if code in metrics.errors:
            metrics.errors[code] += 1
        elif code == FINAL:
            metrics.results["final"] += 1

    def _raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error


def _outcome_of(error: BaseException) -> str:
    match error:
        case StreamError(code=ErrorCode.OVER_LIMIT):
            return "over_limit"
        case StreamError(code=ErrorCode.UNAUTHORIZED):
            return "unauthorized"
        case NoFreeStream() | NoWorker() | RedisUnavailable() | DecodersBusy():
            return "busy"
        case BadUpload(too_large=True):
            return "too_large"
        case BadUpload() | MediaError() | StreamError(code=ErrorCode.BAD_OPTION):
            return "invalid"
        case asyncio.CancelledError() | ClientDisconnect():
            return "client_gone"
    return "failed"


async def _whole_samples(blocks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the same bytes in blocks of whole 16-bit samples."""
    rest = b""
    async for block in blocks:
        data = rest + block
        cut = len(data) & 1
        rest = data[len(data) - cut :]
        if len(data) > cut:
            yield data[: len(data) - cut]
