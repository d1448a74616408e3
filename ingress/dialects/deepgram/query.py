"""The query of `GET /v1/listen`, parsed: audio format, channels and options of a stream."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs

from common.errors import ClientFault
from common.languages import UNKNOWN, Languages
from common.messages import Encoding
from common.options import (
    DETECTOR_WINDOW_MS,
    MAX_PAUSE_MS,
    MAX_SAMPLE_RATE,
    MAX_SILENCE_MS,
    MIN_SAMPLE_RATE,
    StreamOptions,
)
from common.phrases import DEFAULT_BOOST, MAX_BOOST, Phrase, fault_about, parse_phrases
from ingress.dialects.deepgram.refusals import bad_parameter
from ingress.media.wanted import MediaWanted

MAX_QUERY_FIELDS: Final = 1000
MAX_CHANNELS: Final = 8

REFUSED: Final = ("redact", "callback", "callback_method")  # unless it is turned off: "false"
"""Parameters that cannot be ignored: a client relies on masked text, or on results that go elsewhere, and
would not notice that this server has neither."""

NO_RATE: Final = "'encoding' needs 'sample_rate', in Hz."
_SAMPLES: Final = {
    "linear16": Encoding.PCM16,
    "linear32": Encoding.F32,
    "mulaw": Encoding.MULAW,
    "alaw": Encoding.ALAW,
}
_MEDIA: Final = {"opus": "", "ogg-opus": "ogg", "flac": "flac"}


@dataclass(frozen=True, slots=True)
class ListenQuery:
    """A parsed query.

    request_id: id of this connection, part of every message.
    encoding: encoding of the samples; PCM16 where `media` is decoded.
    media: format of compressed audio; None for samples.
    channels: number of interleaved channels.
    multichannel: whether each channel is a stream of its own; else the channels are mixed.
    interim: whether interim (partial) results are sent.
    ends_speech: whether a final at the end of an utterance says `speech_final`.
    utterance_end_s: seconds of audio from the last word of a final to `UtteranceEnd`; None for no such event.
    vad_events: whether starts of speech are reported.   options: options of each stream.
    utterances: for a recording, whether its utterances are part of the answer.
    languages: those of the served model.
    """

    request_id: str
    encoding: Encoding = Encoding.PCM16
    media: MediaWanted | None = None
    channels: int = 1
    multichannel: bool = False
    interim: bool = False
    ends_speech: bool = True
    utterance_end_s: float | None = None
    vad_events: bool = False
    utterances: bool = False
    options: StreamOptions = field(default_factory=StreamOptions)
    languages: Languages = UNKNOWN

    @property
    def num_streams(self) -> int:
        """Number of streams of the connection."""
        return self.channels if self.multichannel else 1


def parse_listen_query(text: str, languages: Languages = UNKNOWN, *, recording: bool = False) -> ListenQuery:
    """Parse the query of a request, given as the text after `?`. Raises Refused.

    languages: those of the served model.   recording: whether the request has a whole recording, whose
    container may say the sample rate.
    """
    request_id = str(uuid.uuid4())
    try:
        return _parse(_Fields(text), request_id, languages, recording=recording)
    except ValueError as error:
        raise bad_parameter(str(error), request_id) from None
    except ClientFault as error:
        raise bad_parameter(error.message, request_id) from None


class _Fields:
    """The fields of a query. All methods raise ValueError, with a sentence for the client."""

    def __init__(self, text: str) -> None:
        try:
            self._fields = parse_qs(text, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            raise ValueError(f"The query has more than {MAX_QUERY_FIELDS} fields.") from None

    def text(self, name: str) -> str | None:
        """Return the last value of a field; None where it is missing or empty."""
        return self._fields[name][-1] or None if name in self._fields else None

    def texts(self, name: str) -> Sequence[str]:
        """Return all values of a field that are not empty."""
        return [value for value in self._fields.get(name, ()) if value]

    def flag(self, name: str) -> bool:
        """Return whether a field is true; a missing field is false."""
        value = (self.text(name) or "false").lower()
        if value not in ("true", "false"):
            raise ValueError(f"'{name}' is true or false.")
        return value == "true"

    def number(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number within bounds; None where the field is missing."""
        value = self.text(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most):
            raise ValueError(f"'{name}' is a whole number of {least} to {most}.")
        return int(value)


def _parse(fields: _Fields, request_id: str, languages: Languages, *, recording: bool) -> ListenQuery:
    for name in REFUSED:
        if any(value.lower() != "false" for value in fields.texts(name)):
            raise ValueError(f"This server has no '{name}'.")
    channels = fields.number("channels", 1, MAX_CHANNELS) or 1
    multichannel = fields.flag("multichannel")
    encoding, rate, media = _audio(fields, channels, mix=not multichannel, needs_rate=not recording)
    silence_ms, ends_speech = _endpointing(fields)
    utterance_end_ms = (
        None
        if fields.text("utterance_end_ms") in (None, "false")
        else fields.number("utterance_end_ms", 1, MAX_PAUSE_MS)
    )
    return ListenQuery(
        request_id=request_id,
        encoding=encoding,
        media=media,
        channels=channels,
        multichannel=multichannel,
        interim=fields.flag("interim_results"),
        ends_speech=ends_speech,
        utterance_end_s=None if utterance_end_ms is None else utterance_end_ms / 1000,
        vad_events=fields.flag("vad_events"),
        utterances=fields.flag("utterances"),
        options=StreamOptions(
            sample_rate=rate,
            words=True,
            auto_finalize=True,
            turn_signals=None if silence_ms is None else "vad",
            turn_silence_ms=silence_ms,
            turn_max_pause_ms=silence_ms,
            language=languages.option_for(fields.text("language")),
            phrases=phrases_of(fields.texts("keyterm"), fields.texts("keywords")),
        ),
        languages=languages,
    )


def _audio(
    fields: _Fields, channels: int, *, mix: bool, needs_rate: bool
) -> tuple[Encoding, int | None, MediaWanted | None]:
    """Return encoding and rate (Hz) of the samples, and the format of compressed audio or None."""
    name = fields.text("encoding")
    if name is None:
        return Encoding.PCM16, None, MediaWanted(mix=mix, channels=channels)
    if name not in _SAMPLES and name not in _MEDIA:
        raise ValueError(
            f"This server does not decode this 'encoding'; it has {', '.join((*_SAMPLES, *_MEDIA))}."
        )
    rate = fields.number("sample_rate", MIN_SAMPLE_RATE, MAX_SAMPLE_RATE)
    if rate is None and needs_rate and name != "ogg-opus":
        raise ValueError(NO_RATE)
    if name in _SAMPLES:
        return _SAMPLES[name], rate, None
    return (
        Encoding.PCM16,
        None,
        MediaWanted(demuxer=_MEDIA[name], packets=name == "opus", mix=mix, channels=channels),
    )


def _endpointing(fields: _Fields) -> tuple[int | None, bool]:
    """Return the silence that ends an utterance, in ms, and whether it is reported as the end of speech.

    A silence of None leaves the end of utterances to the server's default.
    """
    value = fields.text("endpointing")
    if value in (None, "true"):
        return None, True
    if value == "false":
        return None, False
    silence_ms = fields.number("endpointing", 0, MAX_SILENCE_MS)
    return (None if silence_ms is None else max(silence_ms, DETECTOR_WINDOW_MS)), True


def phrases_of(
    keyterms: Sequence[str], keywords: Sequence[str] = (), *, name: str = "keyterm"
) -> tuple[Phrase, ...]:
    """Return the phrases of `keyterm` and of `keywords`, which may have an intensifier after a colon.

    Deepgram takes any term, so what the model cannot write is left out.
    Raises ClientFault `bad_option`; its sentence calls the key terms by `name`.
    """
    made = [{"text": term, "optional": True} for term in keyterms]
    for keyword in keywords:
        text, colon, behind = keyword.rpartition(":")
        intensifier = _number_of(behind) if colon else None
        if intensifier is None:
            made.append({"text": keyword, "optional": True})
        else:
            # Deepgram's own intensifier is 1.
            boost = min(max(intensifier * DEFAULT_BOOST, 0.0), MAX_BOOST)
            made.append({"text": text, "boost": boost, "optional": True})
    try:
        return parse_phrases(made)
    except ClientFault as fault:
        raise fault_about(name if keyterms else "keywords", fault) from None


def _number_of(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
