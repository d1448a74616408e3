"""One client's connection: its dialect on one side, its streams and their results on the other.

The shells (tcp.py, websocket.py) pass in the bytes of the socket; the dialect decodes them to messages;
`ConnectionProtocol` decides on the actions; this class carries them out. It runs on the event loop, and an
error in it ends this connection only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from common.errors import ClientFault, ErrorCode, Retry, StreamError, Unavailable, retry_of
from common.messages import (
    Ack,
    Audio,
    ClientMessage,
    Config,
    Phrases,
    Pong,
    Result,
    Resume,
    ServerMessage,
)
from common.options import StreamOptions
from ingress.auth.client import ANYBODY, KEY_ENDED, Client
from ingress.auth.guard import NO_GUARD, Guard
from ingress.backplane import CLIENT_GONE, FINAL, Backplane, Resumption
from ingress.clients.admission import Admission
from ingress.clients.ending import Ending
from ingress.clients.limits import ConnectionLimits
from ingress.clients.media import ClientMedia
from ingress.clients.outgoing import Outgoing
from ingress.clients.pace import UNPACED, Paces
from ingress.clients.reading import Reading
from ingress.clients.streams import ClientStream, ClientStreams
from ingress.dialects.dialect import Dialect, Heard
from ingress.media.decoder import Decoders
from ingress.media.wanted import Media
from ingress.meter import Meter
from ingress.protocol import (
    FORWARDING,
    ONLY_APPENDING,
    Action,
    ConnectionProtocol,
    Event,
    Outcome,
    State,
)
from ingress.sockets.deadlines import Deadlines
from ingress.sockets.peer import Peer

logger = logging.getLogger(__name__)

_PONG: Final = Pong()
_NO_AUDIO: Final = Audio(b"", final=True)

StartTask = Callable[[Coroutine[Any, Any, None], str], object]


class Connection:
    """One client, from its accepted socket to its closed one.

    dialect: the protocol that the client speaks.
    start_task: starts a named task in the server's task group.
    on_closed: called once, when the socket is gone.
    client: the authenticated client; None where its first message has to show a key.
    guard: checks that key, and the limits of the client's key.
    decoders: decode compressed audio, for dialects that have it.
    counted_first: whether a WebSocket opens only after the guard has admitted the client's streams.
    traceparent: the trace that the client's request is a part of; empty for none.
    paces, address: bound how fast the audio of a client at this address is taken.
    reading: says whether the client is read.
    """

    __slots__ = (
        "_admission",
        "_deadlines",
        "_dialect",
        "_ending",
        "_guard",
        "_limits",
        "_media",
        "_meter",
        "_on_closed",
        "_options",
        "_outgoing",
        "_peer",
        "_protocol",
        "_start_task",
        "_streams",
        "_unconfirmed",
        "reading",
    )

    def __init__(
        self,
        peer: Peer,
        dialect: Dialect,
        backplane: Backplane,
        limits: ConnectionLimits,
        start_task: StartTask,
        on_closed: Callable[[Connection], None],
        meter: Meter,
        client: Client | None = ANYBODY,
        guard: Guard = NO_GUARD,
        decoders: Decoders | None = None,
        *,
        counted_first: bool = False,
        traceparent: str = "",
        paces: Paces = UNPACED,
        address: str = "",
    ) -> None:
        self._peer = peer
        self._dialect = dialect
        self._limits = limits
        self._start_task = start_task
        self._on_closed = on_closed
        self._meter = meter
        self._guard = guard
        self._protocol = ConnectionProtocol(stranger=client is None)
        self._deadlines = Deadlines(
            peer,
            lambda: self._streams.first.received_s,
            begin_s=limits.begin_timeout_s,
            unread_s=limits.unread_timeout_s,
            refused_s=limits.refused_grace_s,
            silent_s=limits.idle_timeout_s,
            audio_s=limits.audio_timeout_s,
        )
        streams = [
            ClientStream(self, number, limits.max_undecoded_s, limits.sample_rate, limits.max_finalizes)
            for number in range(dialect.num_streams)
        ]
        self._streams = ClientStreams(streams, backplane, guard, client, traceparent)
        self._outgoing = Outgoing(peer, dialect, meter, limits.send_buffer_bytes)
        self._ending = Ending(peer, dialect, self._streams, self._outgoing, meter, self._deadlines.stop)
        self._media = ClientMedia(self, dialect, decoders, limits.max_undecoded_s)
        self.reading = Reading(peer, self._protocol, self._media, paces, address)
        self._admission = Admission(
            self, self._streams, self._media, self._outgoing, self.reading, dialect, self._deadlines, meter
        )
        self._options = StreamOptions()  # those with which the streams have begun
        self._unconfirmed = False  # `resumed` was sent, and the client has sent nothing since
        if not (dialect.admitted_first or counted_first):
            self._outgoing.open()

    # Calls of the shell

    def open(self) -> None:
        """Begin: the socket is open, and a WebSocket's request is valid."""
        self._deadlines.silent.start(self._silent_too_long)
        if self.client is None:
            self._deadlines.begin.start(self._begun_too_late)
        else:
            self._wait_for_slots(None)

    def received_text(self, data: bytes) -> None:
        """Take one line or text frame."""
        self._meter.received(len(data))
        if not self._protocol.deaf:
            self._hear(self._dialect.decode_text, data)

    def received_binary(self, data: bytes) -> None:
        """Take one binary frame."""
        self._meter.received(len(data))
        if not self._protocol.deaf:
            self._hear(self._dialect.decode_binary, data)

    def _hear(self, decode: Callable[[bytes], Heard], data: bytes) -> None:
        try:
            message = decode(data)
        except ClientFault as error:
            self._carry_out(self._protocol.fail(error))
            return
        except Exception:
            self.failed()
            return
        if self._unconfirmed and message is not None:
            self._unconfirmed = False
            self._streams.first.confirm()
        if message is None:
            pass
        elif self._media.inlet is not None:
            self._media.take(self._media.inlet, message, len(data))
            if self._media.is_full:
                self._peer.pause_reading()
        elif isinstance(message, list):
            self.received_all(message)
        elif isinstance(message, Media):
            raise AssertionError("compressed audio of a dialect that has none")
        else:
            self.received(message)
        if self._dialect.replies:
            try:
                self._outgoing.reply()
            except ClientFault as error:  # the send buffer is full
                self._drop(error)

    def received_all(self, messages: list[ClientMessage]) -> None:
        """Take messages in order; messages behind one that waits for its slot wait, too."""
        for number, message in enumerate(messages):
            if self._protocol.state is State.READMITTING:
                self._admission.behind = messages[number:]
                return
            self.received(message)

    def received(self, message: ClientMessage) -> None:
        """Take one message, from a frame or from the decoder of compressed audio."""
        protocol = self._protocol
        if type(message) is Audio:
            stream = self._streams.first  # as good as any: all channels are equally long
            end = stream.next_sample + message.num_samples // self._streams.num_streams
            if end - stream.acked_samples > stream.max_undecoded_samples and protocol.takes_audio:
                self._carry_out(protocol.fail(stream.too_much_audio()))
                return
            if protocol.state in ONLY_APPENDING and not message.final:
                try:
                    self._append(message)
                except Exception:
                    self.failed()
                return
        self._carry_out(protocol.receive(message))

    def received_fault(self, error: StreamError) -> None:
        """Take a fault of the framing or of compressed audio; no message follows it."""
        if isinstance(error, ClientFault):
            self._carry_out(self._protocol.fail(error))
        else:
            self.notify(Event.FAILED, error)

    def ended(self) -> None:
        """Note that the client closed its sending side."""
        if self._options.resume and self._protocol.takes_audio:
            # A lost connection often looks like this, and this client has said that it will resume.
            self.lost()
            self._peer.close(self._dialect.farewell(None))
        else:
            self.notify(Event.END)

    def lost(self) -> None:
        """Note that the socket is gone."""
        if self._outgoing.lost:
            return
        self._outgoing.lost = True
        self.notify(Event.LOST)
        self._deadlines.stop()
        self._media.close()
        self.reading.end()
        self._meter.closed(self._outgoing.num_merged)
        self._streams.leave()
        self._on_closed(self)

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._outgoing.pause()
        if not self._ending.hung_up:
            self._deadlines.unread.start(self._unread_too_long)

    def resume_writing(self) -> None:
        """Note that the transport's buffer has drained."""
        self._deadlines.unread.stop()
        self._outgoing.resume()
        self._ending.drained()

    # Calls of the server

    @property
    def client(self) -> Client | None:
        """The authenticated client; None as long as it is unknown."""
        return self._streams.client

    @property
    def transport(self) -> str:
        """`tcp` or `websocket`."""
        return self._meter.transport

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the client to read them."""
        return self._outgoing.waiting_bytes

    @property
    def state(self) -> State:
        """The state of the connection, of the table in ingress/protocol.py."""
        return self._protocol.state

    @property
    def can_resume(self) -> bool:
        """Whether the client has said that it can resume at another ingress."""
        return self._options.resume

    def expel(self) -> None:
        """End the connection: the client's key has become invalid, and its streams cannot be resumed."""
        self.notify(Event.FAILED, ClientFault(ErrorCode.UNAUTHORIZED, KEY_ENDED))

    def drain(self) -> None:
        """Note that this ingress drains."""
        self.notify(Event.DRAIN)

    @property
    def undecoded_s(self) -> float:
        """Audio accepted from the client and not decoded yet, in seconds."""
        return self._streams.first.undecoded_s

    # Calls of a stream (ClientStream)

    def on_result(self, stream: ClientStream, result: Result, *, mergeable: bool) -> None:
        """Send a result to the client; close after the final result of the last stream."""
        self._media.room()
        if stream.ended and self._streams.ended:
            self._meter.result(result)
            self._carry_out(self._protocol.notify(Event.LAST_RESULT), result, stream)
        elif self._protocol.state in FORWARDING:
            self._meter.result(result)
            self._tell(result, stream, mergeable=mergeable)
            if stream.ended and stream.link is not None:
                stream.release()

    def on_ack(self, stream: ClientStream, samples: int) -> None:
        """Tell the client of progress without a result."""
        self._media.room()
        if self._protocol.state in FORWARDING:
            self._tell(Ack(samples), stream, mergeable=True)

    # Actions

    def notify(self, event: Event, error: StreamError | None = None) -> None:
        """Carry out the transition of an event; `error` is the reason, where the service failed."""
        self._carry_out(self._protocol.notify(event, error))

    def _carry_out(
        self, outcome: Outcome, result: Result | None = None, stream: ClientStream | None = None
    ) -> None:
        """Carry out the actions of the table. `result`: the result to forward, and its stream."""
        try:
            for action in outcome.actions:
                if action is not Action.FORWARD:
                    self._do(action, outcome)
                elif result is not None and stream is not None:
                    self._outgoing.send(result, stream.number)
        except ClientFault as error:  # the send buffer is full, or too many finalizes wait
            self._drop(error)
        except Exception:
            self.failed()

    def _tell(self, message: ServerMessage, stream: ClientStream, *, mergeable: bool) -> None:
        """Send a message that needs no transition."""
        try:
            self._outgoing.send(message, stream.number, mergeable=mergeable)
        except ClientFault as error:  # the send buffer is full
            self._drop(error)
        except Exception:
            self.failed()

    def failed(self) -> None:
        """Log a defect of the server that was just caught; end this connection and no other."""
        logger.exception("A connection failed", extra={"stream_id": self._streams.first.stream_id})
        self._drop(Unavailable(ErrorCode.INTERNAL, "The server failed; the fault is logged."))

    def _do(self, action: Action, outcome: Outcome) -> None:
        match action:
            case Action.APPEND:
                if not isinstance(outcome.message, Audio):
                    raise AssertionError("APPEND without audio")
                self._append(outcome.message)
            case Action.IDENTIFY:
                self._admission.identify(outcome.message)
            case Action.ENTER:
                self._wait_for_slots(None)
            case Action.HELLO:
                self._outgoing.open()
                self._deadlines.begin.start(self._begun_too_late)
                for stream in self._streams:
                    self._outgoing.send(stream.hello(), stream.number)
            case Action.PONG:
                self._outgoing.send(_PONG)
            case Action.BEGIN:
                self._begin(outcome.message)
            case Action.READMIT:
                self._wait_for_slots(outcome.message)
            case Action.FINALIZE:
                if not self._streams.finalize():
                    self.reading.pause()
            case Action.PHRASES:
                if not isinstance(outcome.message, Phrases):
                    raise AssertionError("PHRASES without phrases")
                if not self._streams.replace_phrases(outcome.message):
                    self.reading.pause()
            case Action.FINISH:
                self._append(_NO_AUDIO)
            case Action.TAKE_OVER:
                if not isinstance(outcome.message, Resume):
                    raise AssertionError("TAKE_OVER without a resume message")
                self._start_task(self._admission.take_over(outcome.message), "resume")
            case Action.WELCOME_BACK:
                self._outgoing.send(self._streams.first.welcome())
            case Action.ERROR:
                if outcome.error is not None:
                    self._ending.tell(outcome.error, self._streams.first.stream_id)
            case Action.GIVE_BACK | Action.ABANDON:
                self._abandon(outcome.error)
            case Action.RELEASE:
                self._streams.release(FINAL if outcome.error is None else outcome.error.code.value)
            case Action.HANG_UP:
                self._media.close()
                self._ending.hang_up(outcome.error)
            case _:
                raise AssertionError(f"no such action: {action}")

    def _wait_for_slots(self, first: ClientMessage | None) -> None:
        self.reading.pause()
        self._start_task(self._admission.enter(first), "admit")

    def _begin(self, first: ClientMessage | None) -> None:
        self._options = first.options if isinstance(first, Config) else self._dialect.options
        self._deadlines.begin.stop()
        self._streams.begin(self._options)
        self._watch_audio()

    def _watch_audio(self) -> None:
        """Begin to watch that a stream, begun or resumed here, has audio, and not too much of it."""
        self._peer.began()
        self._deadlines.audio.start(self._audio_too_long_ago)
        if self._options.recording:
            self._meter.recording()
        else:
            self.reading.begin(self.client, self._streams.num_streams)

    def _append(self, audio: Audio) -> None:
        streams = self._streams
        first = streams.first
        before = first.next_sample
        if not streams.append(audio):
            self.reading.pause()
        audio_s = (first.next_sample - before) / first.sample_rate
        self._meter.audio(audio_s, first.next_sample)
        self._guard.heard(streams.client, audio_s * streams.num_streams)
        self.reading.heard(audio_s * streams.num_streams)
        if audio.final:
            self._meter.finished()

    def _abandon(self, error: StreamError | None) -> None:
        # A stream is kept for its client where the client asked for that, unless the client's
        # own fault ended it: sending the same again would fail again.
        again = error is None or retry_of(error.code) is not Retry.NO
        code = CLIENT_GONE if error is None else error.code.value
        self._streams.abandon(keep=self._options.resume and again, code=code)

    def resumed(self, resumption: Resumption) -> None:
        """Go on with the stream of another connection, as the client requested."""
        self._options = resumption.options
        if self._protocol.state is not State.RESUMING:  # the client left meanwhile
            self._abandon(None)
            return
        self._streams.resumed(resumption)
        self._deadlines.silent.start(self._silent_too_long)
        self._meter.resumed()
        self._watch_audio()
        self._dialect.resumed(resumption.options, resumption.sample_rate)
        self.notify(Event.RESUMED_FINISHED if resumption.finished else Event.RESUMED)
        self._unconfirmed = True

    # Ends

    def _drop(self, error: StreamError) -> None:
        """End a connection outside the table: drop the waiting messages, send the error, close."""
        was_closed = self._protocol.state is State.CLOSED
        self._protocol.notify(Event.LOST)
        self._media.close()
        self._abandon(error)
        self._ending.cut_off(error, self._streams.first.stream_id, is_over=was_closed)

    # Deadlines that have passed

    def _begun_too_late(self) -> None:
        self._media.park()
        self.notify(Event.UNBEGUN)

    def _unread_too_long(self) -> None:
        sentence = f"No result was read for {self._limits.unread_timeout_s:g} s: read while you send."
        self._drop(ClientFault(ErrorCode.SLOW_READER, sentence))

    def _silent_too_long(self) -> None:
        if self._protocol.state in (State.FINISHING, State.FAILING):
            return  # it is the client that waits
        seconds = self._limits.idle_timeout_s
        fault = ClientFault(ErrorCode.IDLE_TIMEOUT, f"The client sent nothing for {seconds:g} s.")
        self._carry_out(self._protocol.fail(fault))

    def _audio_too_long_ago(self) -> None:
        if self._protocol.state in (State.FINISHING, State.FAILING):
            return  # there is no more
        if self.reading.is_paused:
            self._deadlines.audio.start(self._audio_too_long_ago)
            return
        seconds = self._limits.audio_timeout_s
        fault = ClientFault(ErrorCode.IDLE_TIMEOUT, f"Less than a second of audio came in {seconds:g} s.")
        self._carry_out(self._protocol.fail(fault))
