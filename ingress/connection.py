"""One client's connection: protocol on one side, stream and results on the other.

The shells (tcp.py, websocket.py) hand in what the socket brings; `ConnectionProtocol` decides; this
class carries out the actions. It runs on the event loop, and an error in it ends this connection only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from common.entries import LineKind, StreamId
from common.errors import (
    ERROR_SPECS,
    ClientFault,
    EntryError,
    ErrorCode,
    NoFreeStream,
    StreamError,
    Unavailable,
)
from common.messages import Ack, Audio, ClientMessage, Config, ErrorMessage, Hello, Pong, Resume, Resumed
from common.options import StreamOptions
from common.server_codec import decode_server_message, encode_server_message
from ingress.links import Backplane, Resumption, StreamLink
from ingress.protocol import YOUNG, Action, ConnectionProtocol, Event, Outcome, State
from ingress.sockets.deadlines import Deadlines
from ingress.sockets.peer import Peer
from ingress.sockets.send_buffer import SendBuffer

logger = logging.getLogger(__name__)

CAPABILITIES: Final = ("config", "resume")
BEGIN_TIMEOUT_S: Final = 10.0
REFUSED_GRACE_S: Final = 1.0
UNREAD_TIMEOUT_S: Final = 30.0

_ACK_FIELD: Final = b'"audio_ack_samples":'
_PONG: Final = encode_server_message(Pong())
_NO_AUDIO: Final = Audio(b"", final=True)


StartTask = Callable[[Coroutine[Any, Any, None], str], object]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What bounds one connection.

    sample_rate: stated in `hello`, Hz.   max_buffered_samples: accepted and not yet decoded.
    send_buffer_bytes: results that a client has not read.
    unread_timeout_s: how long a client may read nothing of them.
    idle_timeout_s: silence after which a client is dropped, 0 for never.
    begin_timeout_s: how long a slot is kept for a client that begins no stream.
    refused_grace_s: how long a refused client may still resume.
    """

    sample_rate: int
    max_buffered_samples: int
    send_buffer_bytes: int
    unread_timeout_s: float = UNREAD_TIMEOUT_S
    begin_timeout_s: float = BEGIN_TIMEOUT_S
    idle_timeout_s: float = 0.0
    refused_grace_s: float = REFUSED_GRACE_S


def _error_of(message: bytes) -> StreamError:
    """The error in a worker's `error` message; a code of a newer version is a failure of ours."""
    error = decode_server_message(message)
    if not isinstance(error, ErrorMessage):
        raise EntryError("The line of an error holds another message.")
    known = error.code in ERROR_SPECS
    return StreamError(ErrorCode(error.code) if known else ErrorCode.INTERNAL, error.message)


@dataclass(frozen=True, slots=True)
class _HangUp:
    """The connection closes once the buffer is empty, because of an error or in good order (None)."""

    error: StreamError | None


class Connection:
    """One client, from its accepted socket to its closed one.

    start_task: starts a named task in the server's task group.
    on_closed: called once, when the socket is gone.
    stream_id: id of the stream, from its admission on, and beyond its end; for logs and errors.
    """

    __slots__ = (
        "_backplane",
        "_buffer",
        "_deadlines",
        "_hanging_up",
        "_hung_up",
        "_limits",
        "_link",
        "_logged",
        "_lost",
        "_on_closed",
        "_options",
        "_peer",
        "_protocol",
        "_resume_token",
        "_start_task",
        "stream_id",
    )

    def __init__(
        self,
        peer: Peer,
        backplane: Backplane,
        limits: ConnectionLimits,
        start_task: StartTask,
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._peer = peer
        self._backplane = backplane
        self._limits = limits
        self._start_task = start_task
        self._on_closed = on_closed
        self._protocol = ConnectionProtocol(limits.sample_rate, limits.max_buffered_samples)
        self._buffer = SendBuffer(peer.send, limits.send_buffer_bytes)
        self._deadlines = Deadlines(
            peer,
            begin_s=limits.begin_timeout_s,
            unread_s=limits.unread_timeout_s,
            refused_s=limits.refused_grace_s,
            silent_s=limits.idle_timeout_s,
        )
        self._link: StreamLink | None = None
        self.stream_id: StreamId | None = None
        self._resume_token = ""  # that of `hello`, while no stream has begun
        self._options = StreamOptions()
        self._logged: set[ErrorCode] = set()
        self._hanging_up: _HangUp | None = None
        self._hung_up = False
        self._lost = False

    # What the shell says

    def open(self) -> None:
        """Begin: the socket is ready for messages (for WebSocket, after the handshake)."""
        self._deadlines.silent.start(self._silent_too_long)
        self._peer.pause_reading()
        self._start_task(self._enter(None), "admit")

    def received_text(self, data: bytes) -> None:
        """Take one line or text frame."""
        if self._protocol.deaf:
            return
        try:
            audio = self._protocol.more_audio(data)
            if audio is not None:
                self._append(audio)
                return
            outcome = self._protocol.receive_text(data)
        except Exception:
            self._failed()
            return
        self._carry_out(outcome)

    def received_binary(self, data: bytes) -> None:
        """Take one binary frame."""
        if self._protocol.deaf:
            return
        try:
            outcome = self._protocol.receive_binary(data)
        except Exception:
            self._failed()
            return
        self._carry_out(outcome)

    def received_fault(self, error: ClientFault) -> None:
        """Take a fault of the framing, after which the shell delivers nothing more."""
        self._carry_out(self._protocol.fail(error))

    def ended(self) -> None:
        """The client closed its sending side."""
        if self._options.resume and self._protocol.takes_audio:
            # A lost connection often looks like this, and its client said that it will come back.
            self.lost()
            self._peer.close(None)
        else:
            self._carry_out(self._protocol.notify(Event.END))

    def lost(self) -> None:
        """The socket is gone."""
        if self._lost:
            return
        self._lost = True
        self._carry_out(self._protocol.notify(Event.LOST))
        self._deadlines.stop()
        self._on_closed(self)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._buffer.pause()
        if not self._hung_up:
            self._deadlines.unread.start(self._unread_too_long)

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._deadlines.unread.stop()
        self._buffer.resume()
        if self._buffer.empty:
            self._hang_up_if_asked()

    # What the server says

    @property
    def stream_is_young(self) -> bool:
        """Whether no stream has begun on this connection."""
        return self._protocol.state in YOUNG

    @property
    def can_resume(self) -> bool:
        """Whether the client said that it can go on elsewhere."""
        return self._options.resume

    def drain(self) -> None:
        """This ingress stops."""
        self._carry_out(self._protocol.notify(Event.DRAIN))

    # What the stream says (StreamListener)

    @property
    def undecoded_samples(self) -> int:
        """Audio accepted from the client and not decoded yet."""
        return self._protocol.next_sample - self._protocol.acked_samples

    def on_result(self, kind: LineKind, json: bytes) -> None:
        """Send a finished message to the client."""
        protocol = self._protocol
        if kind is LineKind.PARTIAL or kind is LineKind.TURN:
            # The pattern cannot stand inside a JSON string, whose quotes are escaped.
            at = json.rfind(_ACK_FIELD)
            if at >= 0:
                end = at + len(_ACK_FIELD)
                stop = json.find(b",", end)
                protocol.acknowledge(int(json[end : stop if stop > 0 else -1]))
            if not protocol.forwards:
                return
            try:
                self._buffer.send(json, mergeable=kind is LineKind.PARTIAL)
            except ClientFault as error:  # the send buffer is full
                self._drop(error)
            except Exception:
                self._failed()
        elif kind is LineKind.FINAL:
            self._carry_out(protocol.notify(Event.LAST_RESULT), json)
        else:
            self._carry_out(protocol.notify(Event.STREAM_FAILED, _error_of(json)))

    def on_ack(self, samples: int) -> None:
        """Note progress without a result."""
        if self._protocol.forwards and samples > self._protocol.acked_samples:
            self._protocol.acknowledge(samples)
            self._send(encode_server_message(Ack(samples)))

    def on_failure(self, error: StreamError) -> None:
        """End the stream: the service cannot go on with it."""
        self._carry_out(self._protocol.notify(Event.FAILED, error))

    def on_taken(self) -> None:
        """End this connection: the stream goes on at another."""
        outcome = self._protocol.notify(Event.TAKEN)
        self._link = None
        self._carry_out(outcome)

    def on_room(self) -> None:
        """Read again."""
        if self._protocol.state is not State.CLOSED:
            self._peer.resume_reading()

    # Actions

    def _carry_out(self, outcome: Outcome, result: bytes = b"") -> None:
        try:
            for action in outcome.actions:
                if action is Action.FORWARD:
                    self._send(result)
                else:
                    self._do(action, outcome)
            if outcome.warning is not None:
                self._send(encode_server_message(outcome.warning))
        except ClientFault as error:  # the send buffer is full
            self._drop(error)
        except Exception:
            self._failed()

    def _failed(self) -> None:
        """End this connection after a defect of ours, and no other; called where it was caught, whatever
        it was, and logs it."""
        logger.exception("A connection failed", extra={"stream_id": self.stream_id})
        self._drop(Unavailable(ErrorCode.INTERNAL, "The server failed; the fault is logged."))

    def _do(self, action: Action, outcome: Outcome) -> None:
        match action:
            case Action.APPEND:
                if not isinstance(outcome.message, Audio):
                    raise AssertionError("APPEND without audio")
                self._append(outcome.message)
            case Action.HELLO:
                self._send_hello()
            case Action.PONG:
                self._send(_PONG)
            case Action.BEGIN:
                if isinstance(outcome.message, Config):
                    self._options = outcome.message.options
                self._deadlines.begin.stop()
                self._linked().begin(self._options)
            case Action.READMIT:
                self._peer.pause_reading()
                self._start_task(self._enter(outcome.message), "readmit")
            case Action.FINISH:
                self._append(_NO_AUDIO)
            case Action.TAKE_OVER:
                if not isinstance(outcome.message, Resume):
                    raise AssertionError("TAKE_OVER without a resume message")
                self._start_task(self._take_over(outcome.message), "resume")
            case Action.WELCOME_BACK:
                link = self._linked()
                self._send(
                    encode_server_message(Resumed(link.stream, link.resume_token, self._protocol.next_sample))
                )
            case Action.ERROR:
                if outcome.error is not None:
                    self._send(self._error_message(outcome.error))
            case Action.GIVE_BACK | Action.ABANDON:
                self._abandon(outcome.error)
            case Action.RELEASE:
                link, self._link = self._linked(), None
                link.release()
            case Action.HANG_UP:
                self._hanging_up = _HangUp(outcome.error)
                if self._buffer.empty:
                    self._hang_up_if_asked()
            case _:
                raise AssertionError(f"no such action: {action}")

    def _append(self, audio: Audio) -> None:
        if not self._linked().append(audio):
            self._peer.pause_reading()

    def _send(self, message: bytes) -> None:
        if not self._lost:
            self._buffer.send(message)

    def _send_hello(self) -> None:
        link = self._linked()
        self._resume_token = link.resume_token
        self._deadlines.begin.start(lambda: self._carry_out(self._protocol.notify(Event.UNBEGUN)))
        hello = Hello(link.stream, self._limits.sample_rate, link.resume_token, CAPABILITIES)
        self._send(encode_server_message(hello))

    def _error_message(self, error: StreamError) -> bytes:
        """Log an error, and write the message that tells the client."""
        # A client may repeat at will what leaves its connection open: each code is worth one line.
        level = logging.DEBUG if error.code in self._logged else logging.INFO
        self._logged.add(error.code)
        about: dict[str, object] = {"code": error.code.value}
        if self.stream_id is not None:
            about["stream_id"] = self.stream_id
        logger.log(level, "%s: %s", error.code.value, error.message, extra=about)
        return encode_server_message(ErrorMessage(error.code.value, error.message, self.stream_id))

    def _abandon(self, error: StreamError | None) -> None:
        link, self._link = self._link, None
        if link is not None:
            # A stream is kept for its client where the client asked for that, unless the client's
            # own fault ended it: sending the same again would fail again.
            fault = isinstance(error, ClientFault) and error.code is not ErrorCode.SLOW_READER
            link.abandon(keep=self._options.resume and not fault)

    def _linked(self) -> StreamLink:
        if self._link is None:
            raise AssertionError("an action on a stream that is not there")
        return self._link

    # Admission and resumption

    async def _enter(self, first: ClientMessage | None) -> None:
        """Wait for a slot, during which the client is not heard.

        first: the message that is to begin the stream; only where the slot of `hello` was given back before.
        """
        try:
            link = await self._slot()
        except NoFreeStream as error:
            self._refused(error)
        except StreamError as error:
            self._carry_out(self._protocol.notify(Event.FAILED, error))
        except Exception:
            self._failed()
        else:
            if self._protocol.state is State.CLOSED:  # the client left meanwhile
                link.abandon(keep=False)
                return
            self._link, self.stream_id = link, link.stream
            self._carry_out(self._protocol.notify(Event.ADMITTED))
            if first is not None:
                self._carry_out(self._protocol.receive(first))
        if self._protocol.state is not State.CLOSED:
            self._peer.resume_reading()

    async def _slot(self) -> StreamLink:
        """A slot: a new one, or that of `hello` again where it was given back."""
        if self.stream_id is None:
            return await self._backplane.admit(self)
        return await self._backplane.readmit(self, self.stream_id, self._resume_token)

    def _refused(self, error: NoFreeStream) -> None:
        self._carry_out(self._protocol.notify(Event.FULL, error))
        if self._protocol.state is State.REFUSED:
            self._deadlines.refused.start(
                lambda: self._carry_out(self._protocol.notify(Event.EXPIRED, error))
            )

    async def _take_over(self, request: Resume) -> None:
        self._deadlines.refused.stop()
        self._deadlines.begin.stop()
        self._deadlines.silent.stop()  # it is the client that waits
        try:
            resumption = await self._backplane.resume(self, request)
        except StreamError as error:
            self._carry_out(self._protocol.notify(Event.FAILED, error))
            return
        except Exception:
            self._failed()
            return
        unused, self._link = self._link, resumption.link
        self.stream_id = resumption.link.stream
        if unused is not None:
            unused.abandon(keep=False)
        self._options = resumption.options
        if self._protocol.state is not State.RESUMING:  # the client left meanwhile
            self._abandon(None)
            return
        self._resumed(resumption)

    def _resumed(self, resumption: Resumption) -> None:
        self._deadlines.silent.start(self._silent_too_long)
        self._protocol.resume_at(resumption.next_sample, resumption.acked_samples)
        event = Event.RESUMED_FINISHED if resumption.finished else Event.RESUMED
        self._carry_out(self._protocol.notify(event))

    # Ends

    def _drop(self, error: StreamError) -> None:
        """End a connection that cannot go on by the table: give up what waits, say why, close."""
        was_closed = self._protocol.state is State.CLOSED
        self._protocol.notify(Event.LOST)
        self._buffer.clear()
        self._abandon(error)
        message = self._error_message(error)
        if was_closed:  # and has said its last word, which was not read
            self._peer.abort()
            return
        # Past the buffer: whatever the transport still takes is this message, then the end.
        self._peer.send(message)
        self._hanging_up = _HangUp(error)
        self._hang_up_if_asked()

    def _hang_up_if_asked(self) -> None:
        if self._hanging_up is not None and not self._hung_up:
            self._hung_up = True
            self._deadlines.stop()
            self._peer.close(self._hanging_up.error)

    # Deadlines that have passed

    def _unread_too_long(self) -> None:
        seconds = self._limits.unread_timeout_s
        self._drop(ClientFault(ErrorCode.SLOW_READER, f"Results were left unread for {seconds:g} s."))

    def _silent_too_long(self) -> None:
        if self._protocol.state in (State.FINISHING, State.FAILING):
            return  # it is the client that waits
        seconds = self._limits.idle_timeout_s
        fault = ClientFault(ErrorCode.IDLE_TIMEOUT, f"Nothing came for {seconds:g} s.")
        self._carry_out(self._protocol.fail(fault))
