"""What a live stream brings in place of samples."""

from __future__ import annotations

from typing import NamedTuple


class MediaWanted(NamedTuple):
    """Compressed audio that is decoded while it comes.

    demuxer: of FFmpeg; empty for a container that its first bytes tell.
    packets: packets of Opus without a container, each behind its length (two bytes, big-endian).
    mix: one channel, the mean of all; else there have to be as many as `channels`.
    channels: of packets, and of what is not mixed.
    """

    demuxer: str = ""
    packets: bool = False
    mix: bool = True
    channels: int = 1


class Media(NamedTuple):
    """The next bytes of compressed audio, cut anywhere."""

    data: bytes
