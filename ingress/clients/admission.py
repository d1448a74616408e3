"""Admission of a connection: it takes new slots, or the stream of a lost connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.errors import ErrorCode, StreamError
from common.messages import Auth, ClientMessage, Resume
from ingress.clients.media import ClientMedia
from ingress.clients.outgoing import Outgoing
from ingress.clients.reading import Reading
from ingress.clients.streams import ClientStreams
from ingress.dialects.dialect import Dialect
from ingress.meter import Meter
from ingress.protocol import Event, State
from ingress.sockets.deadlines import Deadlines

if TYPE_CHECKING:
    from ingress.clients.connection import Connection

# A client that gets no new stream may still resume a stream that it has.
_MAY_RESUME: Final = frozenset((ErrorCode.NO_FREE_STREAM, ErrorCode.OVER_LIMIT))


class Admission:
    """The waits of one connection for its streams. It reports their outcomes to the connection as events.

    behind: messages that came with the message that waits for a slot.
    """

    __slots__ = (
        "_connection",
        "_deadlines",
        "_dialect",
        "_media",
        "_meter",
        "_outgoing",
        "_reading",
        "_streams",
        "behind",
    )

    def __init__(
        self,
        connection: Connection,
        streams: ClientStreams,
        media: ClientMedia,
        outgoing: Outgoing,
        reading: Reading,
        dialect: Dialect,
        deadlines: Deadlines,
        meter: Meter,
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._media = media
        self._outgoing = outgoing
        self._reading = reading
        self._dialect = dialect
        self._deadlines = deadlines
        self._meter = meter
        self.behind: list[ClientMessage] = []

    def identify(self, message: ClientMessage | None) -> None:
        """Authenticate the client by the key in its first message."""
        if not isinstance(message, Auth):
            raise AssertionError("IDENTIFY without a key")
        try:
            self._streams.identify(message.token)
        except StreamError as error:
            self._connection.notify(Event.FAILED, error)
            return
        self._deadlines.begin.stop()
        self._connection.notify(Event.IDENTIFIED)

    async def enter(self, first: ClientMessage | None) -> None:
        """Wait for slots; the client is not read meanwhile.

        first: the message that begins the stream; None unless the slot of `hello` was returned before.
        """
        connection = self._connection
        try:
            await self._take_slots()
        except StreamError as error:
            self._meter.refused(error)
            if error.code in _MAY_RESUME and self._dialect.resumes and self._outgoing.is_open:
                self._refused(error)
            else:
                connection.notify(Event.FAILED, error)
        except Exception:
            connection.failed()
        else:
            self._meter.admitted(self._streams.num_streams)
            if connection.state is State.CLOSED:  # the client left meanwhile
                self._streams.abandon(keep=False)
                self._media.close()
                return
            connection.notify(Event.ADMITTED)
            if first is not None:
                behind, self.behind = self.behind, []
                connection.received_all([first, *behind])
        if connection.state is State.CLOSED:
            self._media.close()
        else:
            self._reading.resume()

    async def _take_slots(self) -> None:
        """Take everything that the streams need: a decoder, the key's permission, slots in the cluster."""
        self._media.open()
        await self._streams.count()
        if not self._dialect.admitted_first:
            self._outgoing.open()
        await self._streams.admit()

    def _refused(self, error: StreamError) -> None:
        self._connection.notify(Event.FULL, error)
        if self._connection.state is State.REFUSED:
            self._deadlines.refused.start(lambda: self._connection.notify(Event.EXPIRED, error))

    async def take_over(self, request: Resume) -> None:
        """Wait for the stream of another connection."""
        self._deadlines.refused.stop()
        self._deadlines.begin.stop()
        self._deadlines.silent.stop()  # it is the client that waits
        try:
            resumption = await self._streams.resume(request)
        except StreamError as error:
            self._connection.notify(Event.FAILED, error)
        except Exception:
            self._connection.failed()
        else:
            self._connection.resumed(resumption)
