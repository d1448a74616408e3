"""The configuration of a realtime session, read and written in today's shape and in that of the beta.

An update changes only the fields that it names. Unknown fields are ignored, since newer clients send them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from common.errors import ClientFault
from common.languages import UNKNOWN, Languages
from common.messages import Encoding
from common.options import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, StreamOptions
from common.phrases import Phrase, fault_about, parse_phrases
from ingress.dialects.openai.faults import EventFault, invalid
from ingress.dialects.openai.prompt import phrases_of
from ingress.dialects.openai.turns import ServerVad, Turns, read_turns

LOGPROBS: Final = "item.input_audio_transcription.logprobs"
# A client that names one of these and no `turn_detection` ends the items itself.
_MANUAL_MODELS: Final = frozenset(("gpt-realtime-whisper", "gpt-live-transcribe"))
_DEFAULT_MODEL: Final = "parakeet"
_DELAYS: Final = ("minimal", "low", "medium", "high", "xhigh")
_TELEPHONE_RATE: Final = 8_000
_PCM_RATE: Final = 24_000
_MAX_NAME: Final = 256
_MAX_PROMPT: Final = 16_384
_MAX_LIST: Final = 1_000


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The format of audio: OpenAI's name of today, this service's encoding, and the rate in Hz."""

    name: str
    encoding: Encoding
    rate: int

    def shown(self) -> dict[str, Any]:
        """Return the object of `session.updated`."""
        return {"type": self.name, "rate": self.rate} if self.name == "audio/pcm" else {"type": self.name}


_PCM: Final = AudioFormat("audio/pcm", Encoding.PCM16, _PCM_RATE)
_FORMATS: Final = {
    "audio/pcm": _PCM,
    "audio/pcmu": AudioFormat("audio/pcmu", Encoding.MULAW, _TELEPHONE_RATE),
    "audio/pcma": AudioFormat("audio/pcma", Encoding.ALAW, _TELEPHONE_RATE),
}
_BETA_NAMES: Final = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_NAMES_IN_BETA: Final = {name: beta for beta, name in _BETA_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Hints:
    """The client's hints about the words to come. Keywords become phrases.

    language, languages: tags of BCP 47.   language_option: the option of a stream that they mean.
    """

    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    language: str | None = None
    languages: tuple[str, ...] = ()
    language_option: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """The configuration of a session.

    stated_turns: the client's `turn_detection`, where `states_turns`.
    delay, noise_reduction: accepted and shown, without effect.
    """

    audio: AudioFormat = _PCM
    model: str = _DEFAULT_MODEL
    hints: Hints = Hints()
    delay: str | None = None
    noise_reduction: str | None = None
    states_turns: bool = False
    stated_turns: Turns | None = None
    include: tuple[str, ...] = ()

    @property
    def turns(self) -> Turns | None:
        """The turn detection that ends items; None where the client ends them."""
        if self.states_turns:
            return self.stated_turns
        return None if self.model in _MANUAL_MODELS else ServerVad()

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        """The phrases of a stream; as with OpenAI, what the model cannot write is left out."""
        keywords = tuple(Phrase(" ".join(word.split()), optional=True) for word in self.hints.keywords)
        return phrases_of(self.hints.prompt, keywords)

    def named(self, model: str) -> Session:
        """Return the session with another model name; all names stand for the cluster's one model."""
        return replace(self, model=model[:_MAX_NAME])

    @property
    def options(self) -> StreamOptions:
        """The options of a stream of this session."""
        options = StreamOptions(
            sample_rate=self.audio.rate,
            encoding=self.audio.encoding.value,
            words=LOGPROBS in self.include,
            turn_detection=False,
            phrases=self.phrases,
            language=self.hints.language_option,
        )
        return options if self.turns is None else self.turns.applied(options)

    def updated(self, value: object, known: Languages = UNKNOWN) -> Session:
        """Return the session after an update in either shape. Raises EventFault.

        known: the languages of the served model.
        """
        if not isinstance(value, dict):
            raise EventFault("missing_required_parameter", "'session' is an object.", "session")
        kind = value.get("type")
        if kind not in (None, "transcription"):
            raise EventFault(
                "invalid_value",
                "This server transcribes and nothing else: 'session.type' is 'transcription'.",
                "session.type",
            )
        made = replace(self, include=_include(value, self.include))
        if kind is None and not _MODERN & value.keys():
            return made._updated_beta(value, known)
        fields = _object(_object(value, "audio", "session"), "input", "session.audio")
        return made._updated_input(fields, known)

    def _updated_input(self, fields: Mapping[str, Any], known: Languages) -> Session:
        at = "session.audio.input"
        made = self._transcribing(fields, "transcription", at, known)._cutting(fields, at)
        if fields.get("format") is not None:
            made = replace(made, audio=_format(fields["format"], f"{at}.format"))
        return made._quieting(fields, "noise_reduction", at)

    def _updated_beta(self, fields: Mapping[str, Any], known: Languages) -> Session:
        at = "session"
        made = self._transcribing(fields, "input_audio_transcription", at, known)._cutting(fields, at)
        name = fields.get("input_audio_format")
        if name is not None:
            if not isinstance(name, str) or name not in _BETA_NAMES:
                raise invalid(f"{at}.input_audio_format", "pcm16, g711_ulaw or g711_alaw", name)
            made = replace(made, audio=_FORMATS[_BETA_NAMES[name]])
        return made._quieting(fields, "input_audio_noise_reduction", at)

    def _transcribing(self, fields: Mapping[str, Any], name: str, at: str, known: Languages) -> Session:
        if name not in fields:
            return self
        value, at = fields[name], f"{at}.{name}"
        if value is None:  # turned off; there is nothing else here, so only what it said is forgotten
            return replace(self, hints=Hints(), delay=None)
        if not isinstance(value, dict):
            raise invalid(at, "an object or null", value)
        delay = _string(value, "delay", at, self.delay)
        if delay is not None and delay not in _DELAYS:
            raise invalid(f"{at}.delay", f"one of {', '.join(_DELAYS)}", delay)
        hints = self.hints
        language = _string(value, "language", at, hints.language)
        languages = _strings(value, "languages", at, hints.languages)
        return replace(
            self,
            model=_string(value, "model", at, self.model) or self.model,
            delay=delay,
            hints=Hints(
                _string(value, "prompt", at, hints.prompt, _MAX_PROMPT),
                _keywords(value, at, hints.keywords),
                language,
                languages,
                _language_option(language, languages, at, known),
            ),
        )

    def _cutting(self, fields: Mapping[str, Any], at: str) -> Session:
        if "turn_detection" not in fields:
            return self
        turns = read_turns(fields["turn_detection"], f"{at}.turn_detection", self.turns)
        return replace(self, states_turns=True, stated_turns=turns)

    def _quieting(self, fields: Mapping[str, Any], name: str, at: str) -> Session:
        if name not in fields:
            return self
        if fields[name] is None:
            return replace(self, noise_reduction=None)
        kind = _object(fields, name, at).get("type")
        if kind not in ("near_field", "far_field"):
            raise invalid(f"{at}.{name}.type", "near_field or far_field", kind)
        return replace(self, noise_reduction=kind)

    def shown(self) -> dict[str, Any]:
        """Return the object of `session.updated`."""
        noise = None if self.noise_reduction is None else {"type": self.noise_reduction}
        return {
            "audio": {
                "input": {
                    "format": self.audio.shown(),
                    "transcription": self._transcription(),
                    "noise_reduction": noise,
                    "turn_detection": None if self.turns is None else self.turns.shown(),
                }
            },
            "include": list(self.include),
        }

    def shown_in_beta(self) -> dict[str, Any]:
        """Return the object of `transcription_session.updated`."""
        noise = None if self.noise_reduction is None else {"type": self.noise_reduction}
        return {
            "input_audio_format": _NAMES_IN_BETA[self.audio.name],
            "input_audio_transcription": self._transcription(),
            "turn_detection": None if self.turns is None else self.turns.shown(),
            "input_audio_noise_reduction": noise,
            "include": list(self.include),
            "modalities": ["text"],
        }

    def _transcription(self) -> dict[str, Any]:
        hints = self.hints
        shown: dict[str, Any] = {"model": self.model, "language": hints.language, "prompt": hints.prompt}
        if hints.keywords:
            shown["keywords"] = list(hints.keywords)
        if hints.languages:
            shown["languages"] = list(hints.languages)
        if self.delay is not None:
            shown["delay"] = self.delay
        return shown


# Fields that only today's shape has.
_MODERN: Final = frozenset(("audio", "type"))


def _format(value: object, at: str) -> AudioFormat:
    name = value.get("type") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(name, str) or name not in _FORMATS:
        raise invalid(f"{at}.type", f"one of {', '.join(_FORMATS)}", name)
    found = _FORMATS[name]
    rate = value.get("rate")
    if rate is None:
        return found
    if found is not _PCM:
        if rate != found.rate:
            raise invalid(f"{at}.rate", str(found.rate), rate)
        return found
    if type(rate) is not int or not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise invalid(f"{at}.rate", f"an integer from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}", rate)
    return replace(found, rate=rate)


def _language_option(
    language: str | None, languages: tuple[str, ...], at: str, known: Languages
) -> str | None:
    """Return the option `language` of a stream; `language` goes before `languages`. Raises EventFault."""
    name = "language" if language else "languages"
    try:
        return known.option_for_any((language,) if language else languages)
    except ClientFault as fault:
        raise EventFault("invalid_value", fault.message, f"{at}.{name}") from None


def _include(fields: Mapping[str, Any], before: tuple[str, ...]) -> tuple[str, ...]:
    if "include" not in fields:
        return before
    return _strings(fields, "include", "session", before)


def _object(fields: Mapping[str, Any], name: str, at: str) -> Mapping[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{at}.{name}", "an object", value)
    return value


def _string(
    fields: Mapping[str, Any], name: str, at: str, before: str | None, longest: int = _MAX_NAME
) -> str | None:
    if name not in fields:
        return before
    value = fields[name]
    if value is not None and (not isinstance(value, str) or len(value) > longest):
        raise invalid(f"{at}.{name}", f"a string of at most {longest} characters", value)
    return value


def _keywords(fields: Mapping[str, Any], at: str, before: tuple[str, ...]) -> tuple[str, ...]:
    keywords = _strings(fields, "keywords", at, before)
    try:
        parse_phrases(keywords)
    except ClientFault as fault:
        sentence = fault_about(f"{at}.keywords", fault).message
        raise EventFault("invalid_value", sentence, f"{at}.keywords") from None
    return keywords


def _strings(fields: Mapping[str, Any], name: str, at: str, before: tuple[str, ...]) -> tuple[str, ...]:
    if name not in fields:
        return before
    value = fields[name]
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or len(value) > _MAX_LIST
        or not all(isinstance(one, str) and len(one) <= _MAX_NAME for one in value)
    ):
        takes = f"a list of at most {_MAX_LIST} strings of at most {_MAX_NAME} characters"
        raise invalid(f"{at}.{name}", takes, value)
    return tuple(value)
