"""One client stream of a load: a protocol object that a timer wheel drives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import orjson

from parakeet.bench.load.track import Messages
from parakeet.bench.load.wire import Decoder, WireError
from parakeet.bench.plan import GENERATOR_LAG_ALLOWED_S, Sample

_monotonic = time.monotonic


class LoadStream(asyncio.Protocol):
    """Sends a looped track in real time and times every result.

    The stream has no task and no timer of its own: the wheel calls ``send_due`` once for each message. A
    result that covers audio up to sample ``a`` is timed from the write of the message that held sample ``a -
    1``.
    """

    __slots__ = (
        "_acknowledged",
        "_decoder",
        "_index",
        "_last_sent_s",
        "_left",
        "_messages",
        "_on_end",
        "_on_ready",
        "_sample",
        "_sent",
        "_seq",
        "_transport",
        "ended",
        "finishing_since_s",
        "opened_s",
    )

    def __init__(
        self,
        decoder: Decoder,
        messages: Messages,
        *,
        first_message: int,
        num_messages: int,
        sample: Callable[[], Sample],
        on_ready: Callable[[LoadStream], None],
        on_end: Callable[[LoadStream], None],
    ) -> None:
        self._decoder = decoder
        self._messages = messages
        self._index = first_message
        self._left = num_messages
        self._sample = sample
        self._on_ready = on_ready
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._sent: deque[float] = deque()
        self._acknowledged = 0
        self._last_sent_s = 0.0
        self._seq = -1
        self.opened_s = _monotonic()
        self.ended = False
        self.finishing_since_s = 0.0

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio.Transport, so this is a cast for the type checker
        # only.
        self._transport = cast("asyncio.Transport", transport)
        opening = self._decoder.opening()
        if opening:
            self._transport.write(opening)

    def data_received(self, data: bytes) -> None:
        now = _monotonic()
        try:
            messages, reply = self._decoder.feed(data)
        except WireError:
            self.fail("wire")
            return
        if reply and self._transport is not None:
            self._transport.write(reply)
        for message in messages:
            if self.ended:
                return
            self._take(orjson.loads(message), now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended:
            self.fail("closed")

    # --- the wheel's side

    def send_due(self, due_s: float) -> bool:
        """Write the next message; return False once all messages are sent."""
        transport = self._transport
        if self.ended or transport is None:
            return False
        transport.write(self._messages.audio[self._index])
        now = self._last_sent_s = _monotonic()
        self._sent.append(now)
        self._index += 1
        if self._index == len(self._messages.audio):
            self._index = 0
        self._left -= 1
        sample = self._sample()
        sample.sent += 1
        lag_s = now - due_s
        if lag_s > sample.lag_s:
            sample.lag_s = lag_s
        if lag_s > GENERATOR_LAG_ALLOWED_S:
            sample.lagging += 1
        if self._left > 0:
            return True
        transport.write(self._messages.final)
        self.finishing_since_s = now
        return False

    def fail(self, code: str) -> None:
        """End the stream and count its error code."""
        errors = self._sample().errors
        errors[code] = errors.get(code, 0) + 1
        self._end()

    # --- results

    def _take(self, message: dict[str, Any], now: float) -> None:
        kind = message.get("type")
        if kind == "result":
            self._result(message, now)
        elif kind == "hello":
            self._on_ready(self)
        elif kind == "error":
            self.fail(str(message.get("code", "error")))

    def _result(self, message: dict[str, Any], now: float) -> None:
        sample = self._sample()
        sample.results += 1
        seq = message["seq"]
        first = message.get("seq_first", seq)
        if self._seq >= 0 and first != self._seq + 1:
            sample.errors["sequence"] = sample.errors.get("sequence", 0) + 1
        self._seq = seq
        if message["is_final"]:
            if self.finishing_since_s:
                sample.finals += 1
                sample.final_s.append(now - self._last_sent_s)
                self._end()
            else:
                self.fail("early_final")
            return
        covered = -(-message["audio_ack_samples"] // self._messages.samples)
        newly = covered - self._acknowledged
        if newly <= 0:
            return
        sent = self._sent
        if newly > len(sent):
            self.fail("ack_ahead")
            return
        self._acknowledged = covered
        written = 0.0
        for _ in range(newly):
            written = sent.popleft()
        sample.latency_s.append(now - written)

    def _end(self) -> None:
        self.ended = True
        if self._transport is not None:
            self._transport.close()
        self._on_end(self)
