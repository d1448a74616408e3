"""The record of a stream at an ingress: a line of the log and a count at its end, a span if it is traced."""

from __future__ import annotations

import logging
from typing import Final

from common.entries import StreamId
from common.monitoring.metrics import IngressMetrics
from common.tracing.tracer import NO_SPAN, Span, Tracer
from ingress.backplane import Caller

logger = logging.getLogger(__name__)


class StreamAccount:
    """Collects the content of line and span. Times are those of the event loop, in seconds.

    A stream that goes on at another connection or another ingress is logged there: each stream has one line,
    and counts once, unless its ingress dies. The line has no text of the transcript.

    num_samples: samples of the client's audio so far.   sample_rate: its rate, Hz.
    encoding: encoding of its samples, where the audio does not state it.
    has_audio: whether audio has come here.   has_text: whether a result with text has come.
    """

    __slots__ = (
        "_caller",
        "_final_at",
        "_first_audio_at",
        "_first_text_at",
        "_last_audio_at",
        "_metrics",
        "_span",
        "_stream",
        "_told",
        "encoding",
        "has_audio",
        "has_text",
        "num_samples",
        "sample_rate",
    )

    def __init__(self, stream: StreamId, caller: Caller, metrics: IngressMetrics) -> None:
        self._stream: Final = stream
        self._metrics: Final = metrics
        self._caller: Final = caller
        self._first_audio_at: float | None = None
        self._first_text_at: float | None = None
        self._last_audio_at: float | None = None
        self._final_at: float | None = None
        self._span: Span = NO_SPAN
        self._told = False
        self.num_samples = 0
        self.sample_rate = 0
        self.encoding = ""
        self.has_audio = False
        self.has_text = False

    @property
    def traceparent(self) -> str:
        """The context of the stream's trace, for its record; empty where it is not traced."""
        return self._span.traceparent

    def begun(self, tracer: Tracer, sample_rate: int, encoding: str, traceparent: str) -> None:
        """Note that the stream has begun, or was resumed here.

        encoding: encoding of its audio, where the audio states none.
        traceparent: context of the parent span; empty for none.
        """
        self.sample_rate = sample_rate
        self.encoding = encoding
        self._span = tracer.stream(traceparent, stream_id=self._stream, key_name=self._caller.key_name)

    def claimed(self, worker: str, epoch: int) -> None:
        """Note that a worker owns it."""
        self._span.event("claimed", worker_id=worker, epoch=epoch)

    def handed_on(self) -> None:
        """Note that another connection has resumed the stream, and will log its end."""
        self._told = True
        self._span.end(code="handed_on")

    def audio_began(self, now: float) -> None:
        """Note that the first audio came here."""
        self.has_audio = True
        self._first_audio_at = now

    def audio_ended(self, now: float) -> None:
        """Note that the client has sent all of its audio."""
        self._last_audio_at = now
        self._span.event("end_of_audio")

    def first_text(self, now: float) -> None:
        """Note that the first result with text came."""
        self.has_text = True
        self._first_text_at = now
        self._span.event("first_text")

    def final(self, now: float, num_samples: int) -> None:
        """Note that the final result came, which is about `num_samples` samples: all of them."""
        self._final_at = now
        self.num_samples = num_samples  # of a stream that ended earlier, only its client has named a number
        self._span.event("final")

    def ended(self, code: str) -> None:
        """Log and count the end: `final`, `client_gone`, or an error's code. Only the first call counts."""
        if self._told:
            return
        self._told = True
        seconds = self.num_samples / self.sample_rate if self.sample_rate else 0.0
        self._metrics.streams_ended[code] += 1
        self._metrics.stream_duration_seconds.observe(seconds)
        first_ms = _between_ms(self._first_audio_at, self._first_text_at)
        final_ms = _between_ms(self._last_audio_at, self._final_at)
        self._span.end(code=code, audio_s=round(seconds, 3))
        logger.info(
            "stream ended: %s, key %s, %.2f s of audio at %d Hz in %s, first text after %s, final after %s",
            code,
            self._caller.key_name or "-",
            seconds,
            self.sample_rate,
            self.encoding,
            _spoken(first_ms),
            _spoken(final_ms),
            extra={
                "stream_id": self._stream,
                "code": code,
                "key_name": self._caller.key_name,
                "audio_s": round(seconds, 3),
                "sample_rate": self.sample_rate,
                "encoding": self.encoding,
                "first_text_ms": first_ms,
                "final_ms": final_ms,
            },
        )


def _between_ms(start: float | None, end: float | None) -> int | None:
    return None if start is None or end is None else round((end - start) * 1000)


def _spoken(milliseconds: int | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds} ms"
