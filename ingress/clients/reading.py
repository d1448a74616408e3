"""Reading of one client, with several independent reasons to pause it."""

from __future__ import annotations

from ingress.auth.client import Client
from ingress.clients.media import ClientMedia
from ingress.clients.pace import Pacer, Paces
from ingress.protocol import ConnectionProtocol, State
from ingress.sockets.peer import Peer


class Reading:
    """Reads one client, unless it waits for slots or room, is ahead of its pace, or its decoder is full.

    paces, address: bound how fast the audio of a client at this address is taken.
    heard_s: seconds of audio received from the client, per stream.
    """

    __slots__ = ("_media", "_pacer", "_paused", "_peer", "_protocol", "heard_s")

    def __init__(
        self, peer: Peer, protocol: ConnectionProtocol, media: ClientMedia, paces: Paces, address: str
    ) -> None:
        self._peer = peer
        self._protocol = protocol
        self._media = media
        self._pacer = Pacer(paces, address, peer.pause_reading, self.go_on)
        self._paused = False
        self.heard_s = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether the client is not read for a reason other than a full decoder."""
        return self._paused or self._pacer.is_waiting

    def begin(self, client: Client | None, num_streams: int) -> None:
        """Begin to keep live streams to their client's pace."""
        self._pacer.begin(client, num_streams)

    def heard(self, audio_s: float) -> None:
        """Count audio, each stream's by itself."""
        self.heard_s += audio_s
        self._pacer.heard(audio_s)

    def pause(self) -> None:
        """Read nothing until `resume`."""
        self._paused = True
        self._peer.pause_reading()

    def resume(self) -> None:
        """Read again: there are slots, or there is room."""
        self._paused = False
        self.go_on()

    def go_on(self) -> None:
        """Read, unless another reason to pause is left."""
        if self.is_paused or self._protocol.state is State.CLOSED:
            return
        self._media.room()
        if not self._media.is_full:
            self._peer.resume_reading()

    def on_media_room(self) -> None:
        """Read again: the decoder takes more."""
        if not self.is_paused and self._protocol.state is not State.CLOSED:
            self._peer.resume_reading()

    def end(self) -> None:
        """Note that the connection is over."""
        self._pacer.close()
