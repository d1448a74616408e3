"""The media formats that this service decodes, recognised by their first bytes.

The demuxer is chosen here and nowhere else. If the library guessed, an input could pose as a playlist, whose
entries name other files and addresses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 64
"""Bytes that `sniff` looks at."""


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """A container. demuxer: FFmpeg's name. seeks: its index may be at the end, so it has to be a file."""

    name: str
    demuxer: str
    seeks: bool = False


_FORMATS: Final = {
    "wav": MediaFormat("WAV", "wav"),
    "w64": MediaFormat("Wave64", "w64"),
    "flac": MediaFormat("FLAC", "flac"),
    "ogg": MediaFormat("Ogg", "ogg"),
    "matroska": MediaFormat("WebM", "matroska"),
    "mov": MediaFormat("MP4", "mov", seeks=True),
    "aiff": MediaFormat("AIFF", "aiff", seeks=True),
    "au": MediaFormat("AU", "au"),
    "amr": MediaFormat("AMR", "amr"),
    "aac": MediaFormat("AAC", "aac"),
    "mp3": MediaFormat("MP3", "mp3"),
}
NAMES: Final = tuple(media.name for media in _FORMATS.values())
STREAMED_NAMES: Final = tuple(media.name for media in _FORMATS.values() if not media.seeks)
"""Names of the formats that can be decoded while they are received."""

# The order matters: an MP3 without a tag has the weakest signature.
_HEAD: Final = re.compile(
    rb"(?P<wav>(?:RIFF|RF64|RIFX).{4}WAVE)|(?P<w64>riff\x2e\x91\xcf\x11)|(?P<flac>fLaC)|(?P<ogg>OggS)"
    rb"|(?P<matroska>\x1aE\xdf\xa3)|(?P<mov>.{4}(?:ftyp|moov|mdat|wide|free|skip))|(?P<aiff>FORM.{4}AIF[FC])"
    rb"|(?P<au>\.snd)|(?P<amr>#!AMR)|(?P<aac>\xff[\xf0\xf1\xf8\xf9])"
    rb"|(?P<mp3>ID3[\x02-\x04]|\xff[\xe2\xe3\xf2\xf3\xfa\xfb])",
    re.DOTALL,
)


def sniff(head: bytes) -> MediaFormat | None:
    """Return the format of media that begins with these bytes (HEAD_BYTES, or all there are), or None."""
    found = _HEAD.match(head)
    return None if found is None or found.lastgroup is None else _FORMATS[found.lastgroup]
