"""One client's connection: its dialect on one side, its streams and their results on the other.

The shells (tcp.py, websocket.py) hand in what the socket brings; the dialect says what that means;
`ConnectionProtocol` decides; this class carries out the actions. It runs on the event loop, and an error
in it ends this connection only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

from common.errors import ClientFault, ErrorCode, StreamError, Unavailable
from common.messages import (
    Ack,
    Audio,
    Auth,
    ClientMessage,
    Config,
    Hello,
    Phrases,
    Pong,
    Result,
    Resume,
    Resumed,
    ServerMessage,
)
from common.options import StreamOptions
from ingress.auth.client import ANYBODY, Client
from ingress.auth.guard import NO_GUARD, Guard
from ingress.backplane import CLIENT_GONE, FINAL, Backplane, Resumption
from ingress.capabilities import CAPABILITIES
from ingress.clients.client_stream import ClientStream, split_channels
from ingress.clients.limits import ConnectionLimits
from ingress.clients.outgoing import Outgoing
from ingress.clients.pace import UNPACED, Pacer, Paces
from ingress.clients.slots import Slots
from ingress.dialects.dialect import Dialect, Heard
from ingress.media.decoder import Decoders
from ingress.media.inlet import MediaInlet
from ingress.media.wanted import Media
from ingress.meter import Meter
from ingress.protocol import ONLY_APPENDING, YOUNG, Action, ConnectionProtocol, Event, Outcome, State
from ingress.sockets.deadlines import Deadlines
from ingress.sockets.peer import Peer

logger = logging.getLogger(__name__)

# Without a new stream a client may still go on with one that it has.
_MAY_RESUME: Final = frozenset((ErrorCode.NO_FREE_STREAM, ErrorCode.OVER_LIMIT))
# Audio that was compressed may come faster than it can be recognised: it waits in front of its decoder.
_MAX_DECODED_AHEAD_S: Final = 20.0

_PONG: Final = Pong()
_NO_AUDIO: Final = Audio(b"", final=True)


StartTask = Callable[[Coroutine[Any, Any, None], str], object]


class Connection:
    """One client, from its accepted socket to its closed one.

    dialect: the protocol that the client speaks.
    start_task: starts a named task in the server's task group.
    on_closed: called once, when the socket is gone.
    client: who it is; None where a key has to be shown first, in a message.
    guard: looks at that key, and counts what the client's key may have.
    decoders: of compressed audio, for dialects that have it.
    counted_first: a WebSocket opens only once the client's key may have its streams.
    traceparent: the trace that the client's request is a part of; empty for none.
    paces, address: how fast the audio of a client at this address is taken.
    """

    __slots__ = (
        "_behind",
        "_deadlines",
        "_decoders",
        "_dialect",
        "_guard",
        "_inlet",
        "_limits",
        "_lost",
        "_meter",
        "_on_closed",
        "_options",
        "_outgoing",
        "_pacer",
        "_paused",
        "_peer",
        "_protocol",
        "_slots",
        "_start_task",
        "_streams",
        "_unconfirmed",
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
        self._decoders = decoders
        self._inlet: MediaInlet | None = None
        self._protocol = ConnectionProtocol(stranger=client is None)
        self._deadlines = Deadlines(
            peer,
            lambda: self._streams[0].received_s,
            begin_s=limits.begin_timeout_s,
            unread_s=limits.unread_timeout_s,
            refused_s=limits.refused_grace_s,
            silent_s=limits.idle_timeout_s,
            audio_s=limits.audio_timeout_s,
        )
        self._streams = tuple(
            ClientStream(self, number, limits.max_undecoded_s, limits.sample_rate, limits.max_finalizes)
            for number in range(dialect.num_streams)
        )
        self._slots = Slots(self._streams, backplane, guard, client, traceparent)
        self._outgoing = Outgoing(peer, dialect, meter, limits.send_buffer_bytes, self._deadlines.stop)
        self._pacer = Pacer(paces, address, self._peer.pause_reading, self._read_on)
        self._options = StreamOptions()  # of the streams that have begun
        self._lost = False
        self._paused = False
        self._unconfirmed = False  # `resumed` was sent, and nothing of the client has come behind it
        self._behind: list[ClientMessage] = []  # messages that came along with one that waits for a slot
        if not (dialect.admitted_first or counted_first):
            self._outgoing.open()

    # What the shell says

    def open(self) -> None:
        """Begin: the socket is there, and a WebSocket's request is in order."""
        self._deadlines.silent.start(self._silent_too_long)
        if self.client is None:
            self._deadlines.begin.start(self._begun_too_late)
        else:
            self._ask_for_slots()

    def _ask_for_slots(self) -> None:
        self._pause_reading()
        self._start_task(self._enter(None), "admit")

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
            self._failed()
            return
        if self._unconfirmed and message is not None:
            self._unconfirmed = False
            self._streams[0].confirm()
        if message is None:
            pass
        elif self._inlet is not None:
            self._wait_for_media(self._inlet, message, len(data))
        elif isinstance(message, list):
            self._received_all(message)
        elif isinstance(message, Media):
            raise AssertionError("compressed audio of a dialect that has none")
        else:
            self._received(message)
        if self._dialect.replies:
            self._reply()

    def _wait_for_media(self, inlet: MediaInlet, heard: Heard, num_bytes: int) -> None:
        """Put what was said, in so many bytes, behind the audio that is not decoded yet."""
        for item in heard if isinstance(heard, list) else (heard,):
            if item is not None:
                inlet.take(item, num_bytes)
        if inlet.is_full:
            self._peer.pause_reading()

    def _received_all(self, messages: list[ClientMessage]) -> None:
        """Take messages in order; those behind one that waits for its slot wait, too."""
        for number, message in enumerate(messages):
            if self._protocol.state is State.READMITTING:
                self._behind = messages[number:]
                return
            self._received(message)

    def _reply(self) -> None:
        """Send what the dialect has to say by itself."""
        try:
            self._outgoing.reply()
        except ClientFault as error:  # the send buffer is full
            self._drop(error)

    def _received(self, message: ClientMessage) -> None:
        protocol = self._protocol
        if type(message) is Audio:
            stream = self._streams[0]  # as good as any: all channels are equally long
            end = stream.next_sample + message.num_samples // len(self._streams)
            if end - stream.acked_samples > stream.max_undecoded_samples and protocol.takes_audio:
                self._carry_out(protocol.fail(stream.too_much_audio()))
                return
            if protocol.state in ONLY_APPENDING and not message.final:
                try:
                    self._append(message)
                except Exception:
                    self._failed()
                return
        self._carry_out(protocol.receive(message))

    def received_fault(self, error: StreamError) -> None:
        """Take a fault after which nothing more is delivered: of the framing, or of compressed audio."""
        if isinstance(error, ClientFault):
            self._carry_out(self._protocol.fail(error))
        else:
            self._carry_out(self._protocol.notify(Event.FAILED, error))

    def ended(self) -> None:
        """Note that the client closed its sending side."""
        if self._options.resume and self._protocol.takes_audio:
            # A lost connection often looks like this, and its client said that it will come back.
            self.lost()
            self._peer.close(self._dialect.farewell(None))
        else:
            self._carry_out(self._protocol.notify(Event.END))

    def lost(self) -> None:
        """Note that the socket is gone."""
        if self._lost:
            return
        self._lost = True
        self._outgoing.lost()
        self._carry_out(self._protocol.notify(Event.LOST))
        self._deadlines.stop()
        self._close_inlet()
        self._pacer.close()
        begun = sum(stream.begun for stream in self._streams)
        self._meter.closed(begun, self._streams[0].received_s, self._outgoing.num_merged)
        self._slots.leave()
        self._on_closed(self)

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._outgoing.pause()
        if not self._outgoing.hung_up:
            self._deadlines.unread.start(self._unread_too_long)

    def resume_writing(self) -> None:
        """Note that the transport's buffer has drained."""
        self._deadlines.unread.stop()
        self._outgoing.resume()

    # What the server says

    @property
    def client(self) -> Client | None:
        """Who it is; None as long as that is not known."""
        return self._slots.client

    @property
    def transport(self) -> str:
        """`tcp` or `websocket`."""
        return self._meter.transport

    @property
    def is_paused(self) -> bool:
        """Whether it is not read for now."""
        return self._paused or self._pacer.is_waiting

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the client to read."""
        return self._outgoing.waiting_bytes

    @property
    def stream_is_young(self) -> bool:
        """Whether no stream has begun on this connection."""
        return self._protocol.state in YOUNG

    @property
    def can_resume(self) -> bool:
        """Whether the client said that it can go on elsewhere."""
        return self._options.resume

    def expel(self) -> None:
        """Note that the client's key opens nothing any more."""
        error = StreamError(ErrorCode.UNAUTHORIZED, "The key was revoked, or has expired.")
        self._carry_out(self._protocol.notify(Event.FAILED, error))

    def drain(self) -> None:
        """Note that this ingress stops."""
        self._carry_out(self._protocol.notify(Event.DRAIN))

    # What decoded media says (MediaSink)

    @property
    def takes_audio(self) -> bool:
        """Whether decoded audio may come now."""
        most_s = min(_MAX_DECODED_AHEAD_S, self._limits.max_undecoded_s / 2)
        return not self.is_paused and self._streams[0].undecoded_s < most_s

    def decodes_at(self, sample_rate: int) -> None:
        """Note that decoded audio of this rate will come."""
        self._dialect.options = replace(self._dialect.options, sample_rate=sample_rate)

    def received_decoded(self, message: ClientMessage) -> None:
        """Take decoded audio, or what the client said behind it."""
        self._received(message)

    def on_media_room(self) -> None:
        """Read again."""
        if not self.is_paused and self._protocol.state is not State.CLOSED:
            self._peer.resume_reading()

    def _close_inlet(self) -> None:
        if self._inlet is not None:
            self._inlet.close()

    # What a stream says (ClientStream)

    def on_result(self, stream: ClientStream, result: Result, *, mergeable: bool) -> None:
        """Send a result to the client; behind the last one of the last stream, close."""
        if self._inlet is not None:
            self._inlet.room()
        if stream.ended and all(other.ended for other in self._streams):
            self._meter.result(result)
            self._carry_out(self._protocol.notify(Event.LAST_RESULT), result, stream)
        elif self._protocol.forwards:
            self._meter.result(result)
            self._tell(result, stream, mergeable=mergeable)
            if stream.ended and stream.link is not None:
                stream.release()

    def on_ack(self, stream: ClientStream, samples: int) -> None:
        """Tell the client of progress without a result."""
        if self._inlet is not None:
            self._inlet.room()
        if self._protocol.forwards:
            self._tell(Ack(samples), stream, mergeable=True)

    def on_error(self, error: StreamError) -> None:
        """End the connection: a worker has ended one of its streams."""
        self._carry_out(self._protocol.notify(Event.STREAM_FAILED, error))

    def on_failure(self, error: StreamError) -> None:
        """End the connection: the service cannot go on with one of its streams."""
        self._carry_out(self._protocol.notify(Event.FAILED, error))

    def on_taken(self) -> None:
        """End this connection: the stream goes on at another."""
        self._carry_out(self._protocol.notify(Event.TAKEN))

    def on_room(self) -> None:
        """Read again."""
        if self._protocol.state is not State.CLOSED:
            self._resume_reading()

    # Actions

    def _carry_out(
        self, outcome: Outcome, result: Result | None = None, stream: ClientStream | None = None
    ) -> None:
        """Do what the table says. `result`: what is to be forwarded, of which stream."""
        try:
            for action in outcome.actions:
                if action is not Action.FORWARD:
                    self._do(action, outcome)
                elif result is not None and stream is not None:
                    self._outgoing.send(result, stream.number)
        except ClientFault as error:  # the send buffer is full, or too many finalizes wait
            self._drop(error)
        except Exception:
            self._failed()

    def _tell(self, message: ServerMessage, stream: ClientStream, *, mergeable: bool) -> None:
        """Send what needs no action beside."""
        try:
            self._outgoing.send(message, stream.number, mergeable=mergeable)
        except ClientFault as error:  # the send buffer is full
            self._drop(error)
        except Exception:
            self._failed()

    def _failed(self) -> None:
        """End this connection after a defect of ours, and no other.

        Called where the defect was caught, whatever it was; logs it.
        """
        logger.exception("A connection failed", extra={"stream_id": self._streams[0].stream_id})
        self._drop(Unavailable(ErrorCode.INTERNAL, "The server failed; the fault is logged."))

    def _do(self, action: Action, outcome: Outcome) -> None:
        match action:
            case Action.APPEND:
                if not isinstance(outcome.message, Audio):
                    raise AssertionError("APPEND without audio")
                self._append(outcome.message)
            case Action.IDENTIFY:
                self._identify(outcome.message)
            case Action.ENTER:
                self._ask_for_slots()
            case Action.HELLO:
                self._send_hello()
            case Action.PONG:
                self._outgoing.send(_PONG)
            case Action.BEGIN:
                self._begin(outcome.message)
            case Action.READMIT:
                self._pause_reading()
                self._start_task(self._enter(outcome.message), "readmit")
            case Action.FINALIZE:
                for stream in self._streams:
                    if not stream.finalize():
                        self._pause_reading()
            case Action.PHRASES:
                if not isinstance(outcome.message, Phrases):
                    raise AssertionError("PHRASES without phrases")
                for stream in self._streams:
                    if not stream.replace_phrases(outcome.message):
                        self._pause_reading()
            case Action.FINISH:
                self._append(_NO_AUDIO)
            case Action.TAKE_OVER:
                if not isinstance(outcome.message, Resume):
                    raise AssertionError("TAKE_OVER without a resume message")
                self._start_task(self._take_over(outcome.message), "resume")
            case Action.WELCOME_BACK:
                (stream,) = self._streams
                link = stream.linked()
                self._outgoing.send(Resumed(link.stream, link.resume_token, stream.next_sample))
            case Action.ERROR:
                if outcome.error is not None:
                    self._outgoing.send_error(outcome.error, self._streams[0].stream_id)
            case Action.GIVE_BACK | Action.ABANDON:
                self._abandon(outcome.error)
            case Action.RELEASE:
                code = FINAL if outcome.error is None else outcome.error.code.value
                for stream in self._streams:
                    if stream.ended and stream.link is not None:
                        stream.release(code=code)
                    else:
                        stream.abandon(keep=False, code=code)
            case Action.HANG_UP:
                self._close_inlet()
                self._outgoing.hang_up(outcome.error)
            case _:
                raise AssertionError(f"no such action: {action}")

    def _identify(self, message: ClientMessage | None) -> None:
        if not isinstance(message, Auth):
            raise AssertionError("IDENTIFY without a key")
        try:
            self._slots.client = self._guard.identify(message.token)
        except StreamError as error:
            self._carry_out(self._protocol.notify(Event.FAILED, error))
            return
        self._deadlines.begin.stop()
        self._carry_out(self._protocol.notify(Event.IDENTIFIED))

    def _begin(self, first: ClientMessage | None) -> None:
        options = first.options if isinstance(first, Config) else self._dialect.options
        self._options = options
        self._deadlines.begin.stop()
        for stream in self._streams:
            stream.begun = True
            if options.sample_rate is not None:
                stream.set_rate(options.sample_rate)
            stream.linked().begin(options)
        self._watch_audio()

    def _watch_audio(self) -> None:
        """See that a stream that has begun, or goes on here, has audio, and not too much."""
        self._deadlines.audio.start(self._audio_too_long_ago)
        if not self._options.recording:
            self._pacer.begin(self.client, len(self._streams))

    def _append(self, audio: Audio) -> None:
        streams = self._streams
        if len(streams) == 1:
            if not streams[0].append(audio):
                self._pause_reading()
        else:
            for stream, part in zip(streams, split_channels(audio, len(streams)), strict=True):
                if not stream.append(part):
                    self._pause_reading()
        first = streams[0]
        num_samples = audio.num_samples // len(streams)
        self._meter.audio(num_samples, first.next_sample, first.sample_rate)
        audio_s = audio.num_samples / first.sample_rate
        self._guard.heard(self.client, audio_s)
        self._pacer.heard(audio_s)
        if audio.final:
            self._meter.finished()

    def _pause_reading(self) -> None:
        self._paused = True
        self._peer.pause_reading()

    def _resume_reading(self) -> None:
        self._paused = False
        self._read_on()

    def _read_on(self) -> None:
        """Read, unless there is a reason left not to."""
        if self.is_paused or self._protocol.state is State.CLOSED:
            return
        if self._inlet is not None:
            self._inlet.room()
            if self._inlet.is_full:
                return
        self._peer.resume_reading()

    def _send_hello(self) -> None:
        self._outgoing.open()
        self._deadlines.begin.start(self._begun_too_late)
        for stream in self._streams:
            link = stream.linked()
            hello = Hello(link.stream, self._limits.sample_rate, link.resume_token, CAPABILITIES)
            self._outgoing.send(hello, stream.number)

    def _abandon(self, error: StreamError | None) -> None:
        # A stream is kept for its client where the client asked for that, unless the client's
        # own fault ended it: sending the same again would fail again.
        fault = isinstance(error, ClientFault) and error.code is not ErrorCode.SLOW_READER
        code = CLIENT_GONE if error is None else error.code.value
        for stream in self._streams:
            stream.abandon(keep=self._options.resume and not fault, code=code)

    # Admission and resumption

    async def _enter(self, first: ClientMessage | None) -> None:
        """Wait for slots, during which the client is not heard.

        first: the message that is to begin the stream; only where the slot of `hello` was given back before.
        """
        try:
            await self._take_slots()
        except StreamError as error:
            self._meter.refused(error)
            if error.code in _MAY_RESUME and self._dialect.resumes and self._outgoing.is_open:
                self._refused(error)
            else:
                self._carry_out(self._protocol.notify(Event.FAILED, error))
        except Exception:
            self._failed()
        else:
            self._meter.admitted(len(self._streams))
            if self._protocol.state is State.CLOSED:  # the client left meanwhile
                self._slots.release()
                self._close_inlet()
                return
            self._carry_out(self._protocol.notify(Event.ADMITTED))
            if first is not None:
                behind, self._behind = self._behind, []
                self._received_all([first, *behind])
        if self._protocol.state is State.CLOSED:
            self._close_inlet()
        else:
            self._resume_reading()

    async def _take_slots(self) -> None:
        """Take what the streams need of others: a decoder, places among those of the client's key, slots."""
        if self._dialect.media is not None and self._inlet is None:
            if self._decoders is None:
                raise AssertionError("compressed audio without decoders")
            self._inlet = MediaInlet(self._decoders, self._dialect.media, self)
        await self._slots.count()
        if not self._dialect.admitted_first:
            self._outgoing.open()
        await self._slots.admit()

    def _refused(self, error: StreamError) -> None:
        self._carry_out(self._protocol.notify(Event.FULL, error))
        if self._protocol.state is State.REFUSED:
            self._deadlines.refused.start(
                lambda: self._carry_out(self._protocol.notify(Event.EXPIRED, error))
            )

    async def _take_over(self, request: Resume) -> None:
        self._deadlines.refused.stop()
        self._deadlines.begin.stop()
        self._deadlines.silent.stop()  # it is the client that waits
        (stream,) = self._streams
        try:
            resumption = await self._slots.resume(request)
        except StreamError as error:
            self._carry_out(self._protocol.notify(Event.FAILED, error))
            return
        except Exception:
            self._failed()
            return
        self._options = resumption.options
        if self._protocol.state is not State.RESUMING:  # the client left meanwhile
            self._abandon(None)
            return
        self._slots.resumed()
        self._resumed(stream, resumption)

    def _resumed(self, stream: ClientStream, resumption: Resumption) -> None:
        self._deadlines.silent.start(self._silent_too_long)
        stream.set_rate(resumption.sample_rate)
        stream.next_sample, stream.acked_samples = resumption.next_sample, resumption.acked_samples
        stream.begun = True
        self._meter.resumed()
        self._watch_audio()
        self._dialect.resumed(resumption.options, resumption.sample_rate)
        event = Event.RESUMED_FINISHED if resumption.finished else Event.RESUMED
        self._carry_out(self._protocol.notify(event))
        self._unconfirmed = True

    # Ends

    def _drop(self, error: StreamError) -> None:
        """End a connection that cannot go on by the table: give up what waits, say why, close."""
        was_closed = self._protocol.state is State.CLOSED
        self._protocol.notify(Event.LOST)
        self._close_inlet()
        self._abandon(error)
        self._outgoing.cut_off(error, self._streams[0].stream_id, is_over=was_closed)

    # Deadlines that have passed

    def _begun_too_late(self) -> None:
        if self._inlet is not None:
            self._inlet.park()
        self._carry_out(self._protocol.notify(Event.UNBEGUN))

    def _unread_too_long(self) -> None:
        seconds = self._limits.unread_timeout_s
        sentence = f"No result was read for {seconds:g} s: read while you send."
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
        if self.is_paused:
            self._deadlines.audio.start(self._audio_too_long_ago)
            return
        seconds = self._limits.audio_timeout_s
        fault = ClientFault(ErrorCode.IDLE_TIMEOUT, f"Less than a second of audio came in {seconds:g} s.")
        self._carry_out(self._protocol.fail(fault))
