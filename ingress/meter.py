"""The metrics of one connection; ingress/streams/account.py counts the ends of streams."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from common.errors import ErrorCode, StreamError
from common.messages import Result
from common.monitoring.metrics import IngressMetrics

# The latency of results is measured on one stream in this many: it needs the arrival time of every message.
_SAMPLED_EVERY: Final = 16
# Reasons for a refused slot, as labels of `admissions`.
_REFUSALS: Final = {
    ErrorCode.NO_FREE_STREAM: "full",
    ErrorCode.NO_WORKER: "no_worker",
    ErrorCode.REDIS_UNAVAILABLE: "redis",
    ErrorCode.OVER_LIMIT: "over_limit",
}
# Messages whose arrival time is kept: more than are under way unless results are badly late.
_MAX_ARRIVALS: Final = 1024


class Meter:
    """Counts the events of one connection. transport: `tcp` or `websocket`."""

    __slots__ = (
        "_arrivals",
        "_began_s",
        "_ended_s",
        "_metrics",
        "_said_something",
        "transport",
    )

    _num_made = 0

    def __init__(self, metrics: IngressMetrics, transport: str) -> None:
        self._metrics = metrics
        self.transport = transport
        self._began_s: float | None = None  # time of the first audio
        self._ended_s: float | None = None  # time of the end of the audio
        self._said_something = False
        Meter._num_made += 1
        # Samples accepted so far, and the arrival time of the last of them.
        self._arrivals: deque[tuple[int, float]] | None = (
            deque(maxlen=_MAX_ARRIVALS) if Meter._num_made % _SAMPLED_EVERY == 0 else None
        )

    # The client

    def received(self, num_bytes: int) -> None:
        """Count a message that came."""
        self._metrics.received_bytes[self.transport] += num_bytes

    def sent(self, num_bytes: int) -> None:
        """Count a message that went out."""
        self._metrics.sent_bytes[self.transport] += num_bytes

    def admitted(self, num_streams: int) -> None:
        """Count admitted streams."""
        self._metrics.admissions["admitted"] += num_streams

    def refused(self, error: StreamError) -> None:
        """Count a refused admission."""
        outcome = _REFUSALS.get(error.code)
        if outcome is not None:
            self._metrics.admissions[outcome] += 1

    def resumed(self) -> None:
        """Count a stream that its client resumed after a lost connection."""
        self._metrics.resumes["resumed"] += 1

    def recording(self) -> None:
        """Note that the client sends a recording, as fast as it can: the age of its results says nothing."""
        self._arrivals = None

    def audio(self, audio_s: float, end: int) -> None:
        """Count seconds of audio; `end` samples of the stream have come by now."""
        self._metrics.audio_seconds += audio_s
        if self._began_s is None:
            self._began_s = time.monotonic()
        if self._arrivals is not None:
            self._arrivals.append((end, time.monotonic()))

    def finished(self) -> None:
        """Note that the client has sent all of its audio."""
        self._ended_s = time.monotonic()

    # The service

    def result(self, result: Result) -> None:
        """Count a result that goes to the client."""
        self._metrics.results["final" if result.is_final else "partial"] += 1
        if not self._said_something and result.text and self._began_s is not None:
            self._said_something = True
            self._metrics.first_result_seconds.observe(time.monotonic() - self._began_s)
        if result.is_final:
            if self._ended_s is not None:
                self._metrics.final_latency_seconds.observe(time.monotonic() - self._ended_s)
        elif self._arrivals:
            self._note_latency(result.audio_ack_samples)

    def _note_latency(self, acked: int) -> None:
        arrivals = self._arrivals
        assert arrivals is not None
        came: float | None = None
        while arrivals and arrivals[0][0] <= acked:
            came = arrivals.popleft()[1]
        if arrivals and came is None:
            came = arrivals[0][1]  # the result covers a part of this message
        if came is not None:
            self._metrics.result_latency_seconds.observe(time.monotonic() - came)

    def error(self, error: StreamError) -> None:
        """Count an error that goes to the client."""
        self._metrics.errors[error.code.value] += 1
        if error.code is ErrorCode.RESUME_REFUSED:
            self._metrics.resumes["refused"] += 1
        elif error.code is ErrorCode.RESUMED_ELSEWHERE:
            self._metrics.resumes["elsewhere"] += 1

    def closed(self, num_merged: int) -> None:
        """Count the end of the connection."""
        self._metrics.results_merged += num_merged
