"""Compressed audio that a live stream sends in place of samples."""

from __future__ import annotations

from typing import NamedTuple


class MediaWanted(NamedTuple):
    """The format of compressed audio that is decoded while it comes.

    demuxer: FFmpeg's name; empty for a container that is recognised by its first bytes.
    packets: whether the audio is Opus packets without a container, each after its length (two bytes,
        big-endian).
    mix: whether to mix all channels to their mean; else there have to be exactly `channels` of them.
    channels: number of channels of packets, and of audio that is not mixed.
    """

    demuxer: str = ""
    packets: bool = False
    mix: bool = True
    channels: int = 1


class Media(NamedTuple):
    """The next bytes of compressed audio, cut anywhere."""

    data: bytes
