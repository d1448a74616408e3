"""The HTTP protocol of one socket of the WebSocket port, until the socket becomes a stream's.

uvicorn's protocol class does the work, over httptools' parser: keep-alive, pipelining, bodies, and running
the endpoints. This class adds the bounds and deadlines that it lacks, refuses requests before an endpoint has
them, and hands an upgrade to WebSocket over for good, with its socket and its request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from http import HTTPStatus
from time import monotonic
from typing import Final, NoReturn, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ingress.clients.limits import UNREAD_TIMEOUT_S
from ingress.http import handshake
from ingress.http.answering import answering
from ingress.http.body import Body, has_body, head_of_body
from ingress.http.head import fault_of, request_of
from ingress.http.refusal import Refusal, Refused, failed, refusing
from ingress.http.site import TOO_MANY, Site
from ingress.request import Request
from ingress.sockets.deadlines import ProgressDeadline, came_late
from ingress.sockets.gate import Full, Place
from ingress.sockets.linger import Linger, acked_bytes
from ingress.sockets.shell import BYTES_A_TURN
from ingress.sockets.turns import OPENING_S, READ_S_PER_BYTE
from ingress.sockets.websocket import WebSocketShell

MAX_REQUEST_LINE_BYTES: Final = 64 * 1024
"""Longest request line in bytes, its line end included."""
MAX_HEADER_BYTES: Final = 64 * 1024
"""Longest block of headers in bytes, each header counted with its separators."""
FREE_PARTS: Final = 4096
MIN_PART_BYTES: Final = 16
"""Least average size of a body's chunks after FREE_PARTS: tiny ones could take all the time of an ingress."""
TURN_S: Final = 0.0005  # time for which one client's bytes are parsed before others have their turn
MAX_PIPELINED: Final = 16
"""Most requests of one connection that wait for the answer to an earlier request."""

# How long a client over the limit of connections may take to send its request, which the refusal answers.
_TURNED_AWAY_S: Final = 1.0
# A client that has closed its sending side is probed this often.
_PROBE_EVERY_S: Final = 1.0
# The clock is read after this many bytes: chunks of one byte are 700 parts in 4 KB.
_PIECE_BYTES: Final = 4096
_PROCESSING: Final = b"HTTP/1.1 102 Processing\r\n\r\n"
_LINE_OVERHEAD_BYTES: Final = len("  HTTP/1.1\r\n")
_HEADER_OVERHEAD_BYTES: Final = len(": \r\n")

_LINE_TOO_LONG: Final = Refusal(
    HTTPStatus.REQUEST_URI_TOO_LONG, f"The request line is longer than {MAX_REQUEST_LINE_BYTES} bytes."
)
_HEADERS_TOO_LONG: Final = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"The headers are longer than {MAX_HEADER_BYTES} bytes."
)
_GARBAGE: Final = Refusal(HTTPStatus.BAD_REQUEST, "This is no HTTP request.")
_PIPELINED: Final = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS, f"More than {MAX_PIPELINED} requests of this connection wait."
)


class Front(HttpToolsProtocol):
    """The protocol of one connection.

    site: the routes, endpoints and limits of the port.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site.config, site.state, {}, asyncio.get_running_loop())
        self._site = site
        self._place: Place | None = None
        self._request: Request | None = None
        self._turned_away: Refusal | None = None  # why there is no place for this socket
        self._refusal: Refusal | None = None  # the refusal of the request whose head is being read
        self._opens_websocket = False
        self._body_follows = False  # after a head whose upgrade is ignored, where httptools stops
        self._in_head = False
        self._header_bytes = 0  # of this request's head, and of the trailers after its body
        self._untold_bytes = 0  # bytes that the parser took since its last callback
        self._head_timer: asyncio.TimerHandle | None = None
        self._body = bytearray()  # parts of this read, joined: each handed-on part copies all waiting bytes
        self._num_parts = self._parts_bytes = 0  # parts of this request's body, and their bytes
        self._body_bytes = 0  # bytes of the body that came in this window of time
        self._body_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._unread = ProgressDeadline(UNREAD_TIMEOUT_S, lambda: acked_bytes(self.transport))
        self._over = False  # whether nothing more is read
        self._has_left = False  # whether the socket is a stream's; a refused client's socket is read on here
        self._unheard = b""  # bytes that came and were not parsed
        self._resting = False  # whether it waits for its next turn
        self._linger: Linger | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()  # the first is being answered

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket and wait for a request, for a bounded time."""
        taken = cast(asyncio.Transport, transport)
        place = self._site.gate.enter(taken)
        super().connection_made(taken)
        if isinstance(place, Place):
            self._place = place
            self._wait_for_head(self._site.limits.head_timeout_s)
        elif place is Full.NO_FILES:
            self._over = True
            taken.abort()
        else:
            self._turned_away = TOO_MANY[place]
            self._wait_for_head(_TURNED_AWAY_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed."""
        self._over = True
        self._stop_waiting()
        self._stop_watching_body()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._unset_keepalive_if_required()
        self._unread.stop()
        if self._linger is not None:
            self._linger.cancel()
        if self._place is not None:
            self._place.leave()
            self._place = None
        self._tell_that_client_is_gone()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and parse them at once if no other client waits for a turn."""
        is_large = len(data) >= BYTES_A_TURN
        if is_large:
            self._site.gate.turns.charge(len(data) * READ_S_PER_BYTE)
        if self._over:
            if self._linger is not None:
                self._linger.note_input()
            if is_large:
                self._end_turn()
            return
        self._unset_keepalive_if_required()
        self._unheard += data
        if self._resting:
            self.transport.pause_reading()  # uvicorn may have ended the pause
        elif not self._site.gate.turns.at_once(self._hear) or is_large:
            self._end_turn()

    def _hear(self) -> None:
        """Parse the waiting bytes for the time of a turn; the rest waits for another turn."""
        end_s = monotonic() + TURN_S
        came, self._unheard, at = memoryview(self._unheard), b"", 0
        while at < len(came) and not self._over:
            piece = came[at : at + _PIECE_BYTES]
            stopped_at = self._parse(piece)
            if stopped_at is not None:
                self._upgraded(bytes(came[at + stopped_at :]))
                return
            at += len(piece)
            if monotonic() >= end_s:
                break
        if self._over:
            return
        self._unheard = bytes(came[at:])
        self._hand_on_body()
        if self._unheard:
            self._end_turn()

    def _parse(self, data: memoryview) -> int | None:
        """Parse a part of the waiting bytes; return where a head that requests an upgrade ended, or None."""
        self._untold_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return int(upgrade.args[0])
        except httptools.HttpParserError as error:
            self._refuse(self._refusal_after(error))
            return None
        if self._untold_bytes > MAX_HEADER_BYTES:
            self._refuse(_HEADERS_TOO_LONG)  # the parser holds one header that does not end
        elif not self._in_head and not self._answering and self.timeout_keep_alive_task is None:
            # Bytes between two requests do not extend the deadline.
            self._wait_for_head(self._site.limits.head_timeout_s)
        return None

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the socket open for the answer, though the client sends nothing more."""
        while self._unheard and not self._over:
            self._hear()
        if self._over or not self._answering or self.cycle.more_body:
            return False
        self._over = True
        self.cycle.keep_alive = False
        self._probe_timer = self.loop.call_later(_PROBE_EVERY_S, self._probe)
        return True

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._unread.start(self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the transport's buffer has drained."""
        self._unread.stop()
        super().resume_writing()

    # httptools

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_head = True
        self._header_bytes = self._untold_bytes = 0
        self._wait_for_head(self._site.limits.head_timeout_s)

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._untold_bytes = 0
        super().on_url(url)
        if len(self.url) > MAX_REQUEST_LINE_BYTES:
            self._stop_parsing(_LINE_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header, or trailer."""
        self._untold_bytes = 0
        self._header_bytes += len(name) + len(value) + _HEADER_OVERHEAD_BYTES
        if self._header_bytes > MAX_HEADER_BYTES:
            self._stop_parsing(_HEADERS_TOO_LONG)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass a request, whose head is complete, to its endpoint or stream."""
        self._in_head = False
        self._untold_bytes = 0
        self._stop_waiting()
        if self._turned_away is not None:
            self._stop_parsing(self._turned_away)
        if len(self.parser.get_method()) + len(self.url) + _LINE_OVERHEAD_BYTES > MAX_REQUEST_LINE_BYTES:
            self._stop_parsing(_LINE_TOO_LONG)
        request = self._request = self._read_request()
        version = self.parser.get_http_version()
        fault = fault_of(request, version)
        if fault is not None:
            self._stop_parsing(self._site.shaped(request.path, fault))
        # HTTP/1.0 has no upgrades (RFC 9110, section 7.8), and an upgrade to WebSocket is a GET.
        self._opens_websocket = (
            self.parser.should_upgrade()
            and version == "1.1"
            and request.method == "GET"
            and "websocket" in request.tokens("upgrade")
        )
        if self._opens_websocket:
            if has_body(request):
                self._stop_parsing(handshake.HAS_BODY)
            if self._answering:
                self._stop_parsing(handshake.IS_BEHIND)
            return
        self._site.gate.turns.charge(OPENING_S)
        if len(self.pipeline) >= MAX_PIPELINED:
            self._stop_parsing(_PIPELINED)
        self.app = self.config.loaded_app
        full = None if self._place is None else self._place.serve(request.address)
        try:
            if full is not None:
                raise Refused(TOO_MANY[full])
            request = self._site.identified(request)
        except Refused as refused:
            self.app = refusing(self._site.refused(request, refused.refusal))
        self.scope["client"] = (request.address, self.client[1] if self.client else 0)
        self.scope["state"]["request"] = request
        self._site.update_date()
        super().on_headers_complete()
        self.cycle.transport = answering(self.transport, self._close_after_answer)
        self._unanswered.append(self.cycle)
        self._watch_body()
        if self.parser.should_upgrade():
            # Another upgrade, which is ignored. The parser stops here, so this request is the last.
            self.cycle.keep_alive = False
            self._body_follows = has_body(request)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._untold_bytes = 0
        self._body_bytes += len(body)
        self._body += body
        self._num_parts += 1
        self._parts_bytes += len(body)
        if self._num_parts > FREE_PARTS and self._parts_bytes < self._num_parts * MIN_PART_BYTES:
            self._over = True
            self.transport.close()  # without an answer: the endpoint is told that its client has left

    def on_message_complete(self) -> None:
        """Note that a request is complete."""
        if self._body_follows:
            return
        self._num_parts = self._parts_bytes = 0
        self._hand_on_body()
        self._stop_watching_body()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that a request is answered."""
        self._unanswered.popleft()
        if self._place is not None:
            self._place.served()
        super().on_response_complete()
        if self._over:
            self._unset_keepalive_if_required()

    # Read by uvicorn while it reads a request

    def _should_upgrade(self) -> bool:
        return self._opens_websocket

    # Internal

    @property
    def _answering(self) -> bool:
        """Whether a request is not answered completely."""
        return self.cycle is not None and not self.cycle.response_complete

    def _read_request(self) -> Request:
        if self.url == b"*":  # a request about the server as a whole
            self.url = b"/"
        socket_address = "" if self._place is None else self._place.address
        request = request_of(self.parser.get_method(), self.url, self.headers, socket_address)
        if request is None:
            self._stop_parsing(_GARBAGE)
        address = self._site.proxies.client_of(request.address, request.tokens("x-forwarded-for"))
        return request if address == request.address else replace(request, address=address)

    def _upgraded(self, rest: bytes) -> None:
        """Handle a socket whose parser has stopped after a head that requests another protocol."""
        if not self._opens_websocket:
            self._over = not self._body_follows
            if self._body_follows:
                self._read_body(rest)
            return
        if self._request is None or self._place is None:
            raise AssertionError("an upgrade without a request")
        try:
            self._request = self._site.identified(self._request)
            open_connection = self._site.stream(self._request, self._place)
            response = handshake.accepted(self._request)
        except Exception as error:
            refusal = error.refusal if isinstance(error, Refused) else failed(error)
            self._refuse(self._site.shaped(self._request.path, refusal))
            return
        self.connections.discard(self)
        place, self._place = self._place, None
        self._over = self._has_left = True
        self.parser = None  # type: ignore[assignment]  # it refers to this object
        shell = WebSocketShell(self._site.limits.max_frame_bytes, self._site.pinger)
        self.transport.set_protocol(shell)
        shell.take_over(self.transport, place, open_connection, response, rest)

    def _read_body(self, rest: bytes) -> None:
        """Read the body after a head whose upgrade is ignored."""
        self._body_follows = False
        self.parser = httptools.HttpRequestParser(
            Body(self.on_header, self.on_body, self.on_message_complete)
        )
        self._unheard = head_of_body(self.headers) + rest
        self._hear()

    def _refusal_after(self, error: httptools.HttpParserError) -> Refusal:
        """Return the refusal for an error of the parser."""
        if not isinstance(error, httptools.HttpParserCallbackError):
            return _GARBAGE
        return self._refusal or failed(error.__context__ or error)

    def _stop_parsing(self, refusal: Refusal) -> NoReturn:
        """Raise out of the parser, which calls this."""
        self._refusal = refusal
        raise Refused(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal, and close. After an earlier request without an answer, only close."""
        self._over = True
        self._stop_waiting()
        if self._answering:
            self.cycle.keep_alive = False
            if not self.cycle.more_body:
                return
            # The fault is in a body; its endpoint would wait for the rest of it.
            if len(self._unanswered) > 1 or self.cycle.response_started:
                self.transport.close()
                return
            self._tell_that_client_is_gone()
        # A request that was answered before its body had come has one answer, whatever comes of the rest.
        if self._in_head or self.cycle is None or not (self.cycle.response_complete and self.cycle.more_body):
            request = None if self._in_head else self._request
            self.transport.write(self._site.refusals.note(refusal, request).answer())
        self._close_in_order()

    def _tell_that_client_is_gone(self) -> None:
        """Tell every waiting endpoint that the client has left; uvicorn tells only the last one."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _close_in_order(self) -> None:
        """Close the sending side, and let the client read all sent bytes before the socket is closed."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()  # TLS has no half-closed connections; this flushes first
        self._linger = Linger(self.transport, UNREAD_TIMEOUT_S)

    def _close_after_answer(self) -> None:
        """Close after the last answer; in order, where the client still sends its body."""
        if len(self._unanswered) == 1 and self.cycle.more_body:
            self._over = True
            self._close_in_order()
        else:
            self.transport.close()

    def _wait_for_head(self, seconds: float) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(seconds, self._too_slow, seconds)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_turn(self) -> None:
        """Read nothing more until the next turn of this client."""
        if not (self._resting or self._has_left or self.transport.is_closing()):
            self._resting = True
            self.transport.pause_reading()
            self._site.gate.turns.ask(self._next_turn)

    def _next_turn(self) -> None:
        self._resting = False
        if self._unheard and not self._over:
            self._hear()
        if not (self._resting or self._has_left or self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _hand_on_body(self) -> None:
        """Hand on the body bytes of this read as one part."""
        if self._body:
            body, self._body = bytes(self._body), bytearray()
            super().on_body(body)

    def _watch_body(self) -> None:
        """Watch that a body keeps its least rate, as long as it is read."""
        self._body_bytes = 0
        self._body_timer = self.loop.call_later(self._site.limits.body_window_s, self._look_at_body)

    def _stop_watching_body(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _look_at_body(self) -> None:
        if self._over:
            return
        limits, timer = self._site.limits, self._body_timer
        stood_still = self.flow.read_paused or self._resting or (timer is not None and came_late(timer))
        if self._body_bytes >= limits.min_body_bytes or stood_still:
            self._watch_body()
            return
        self._body_timer = None
        if self._request is None:
            raise AssertionError("a body without a request")
        self._site.num_slow_bodies += 1
        sentence = f"Less than {limits.min_body_bytes} bytes of the body came in {limits.body_window_s:g} s."
        self._refuse(self._site.shaped(self._request.path, Refusal(HTTPStatus.REQUEST_TIMEOUT, sentence)))

    def _probe(self) -> None:
        """Send an interim response, to find out whether a client that sends no more still reads.

        If the client has left, its system resets the connection; a waiting client skips the response. An
        answer that has begun is not broken into, also where other requests wait behind it.
        """
        if not self._unanswered:
            return
        answered = self._unanswered[0]
        if not answered.response_started and answered.scope["http_version"] == "1.1":
            self.transport.write(_PROCESSING)
        self._probe_timer = self.loop.call_later(_PROBE_EVERY_S, self._probe)

    def _too_slow(self, seconds: float) -> None:
        timer, self._head_timer = self._head_timer, None
        if self._over:
            return
        if self._turned_away is not None:
            self._refuse(self._turned_away)
        elif self._resting or (timer is not None and came_late(timer)):
            self._wait_for_head(seconds)  # it is the client that waits
        elif self._in_head or self._request is None:
            self._refuse(Refusal(HTTPStatus.REQUEST_TIMEOUT, f"No whole request within {seconds:g} s."))
        else:
            self._over = True
            self._close_in_order()
