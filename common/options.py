"""Options of one stream: a frozen dataclass and the typed table that validates it.

To add an option, add a field to `StreamOptions` and an `Option` row to `OPTIONS`. Validation, the codec and
the table of docs/protocol.md follow from the row; ARCHITECTURE.md lists the further steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Final

import orjson

from common.errors import ClientFault, EntryError, ErrorCode, shown
from common.phrases import TAKES as PHRASES_TAKES
from common.phrases import Phrase, parse_phrases

TURN_SIGNALS: Final[tuple[str, ...]] = (
    "vad",
    "eou",
    "smart_turn",
    "vad+eou",
    "vad+smart_turn",
    "eou+smart_turn",
    "vad+eou+smart_turn",
)
"""Sets of signals that end an utterance: the speech detector, the model's `<EOU>`, smart-turn."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The options in a client's ``config`` message; the defaults hold without a message.

    None stands for the worker's flag of the same name; of `sample_rate` for the ingress's flag, and of
    `language` for what the model takes by itself.
    """

    sample_rate: int | None = None
    encoding: str = "pcm16"
    text: str = "whole"
    words: bool = False
    resume: bool = False
    auto_finalize: bool = False
    recording: bool = False
    language: str | None = None
    phrases: tuple[Phrase, ...] = ()
    turn_detection: bool | None = None
    turn_signals: str | None = None
    vad_threshold: float | None = None
    turn_min_speech_ms: int | None = None
    turn_pause_ms: int | None = None
    turn_silence_ms: int | None = None
    turn_max_pause_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table.

    kind: bool, int, float or str (int is accepted where float is meant, bool never as a number), or tuple for
        phrases (common/phrases.py).
    minimum, maximum: inclusive bounds of a number; for a string, of its length.
    choices: the allowed strings, empty for any.
    help: one sentence for docs/protocol.md.
    """

    name: str
    kind: type[bool] | type[int] | type[float] | type[str] | type[tuple[Phrase, ...]]
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: object) -> bool | int | float | str | tuple[Phrase, ...]:
        """Return `value` in the option's type. Raises ClientFault `bad_option` with the valid values."""
        if self.kind is tuple:
            return parse_phrases(value)
        given = value
        if self.kind is float and type(value) is int:
            value = float(value)
        if (
            type(value) is not self.kind
            or not isinstance(value, (bool, int, float, str))
            or not self._allows(value)
        ):
            raise ClientFault(
                ErrorCode.BAD_OPTION,
                f"Option '{self.name}' takes {self.takes()}, not {shown(given)}.",
            )
        return value

    def _allows(self, value: bool | int | float | str) -> bool:
        if isinstance(value, bool):
            return True
        if isinstance(value, str):
            # Half of a surrogate pair cannot be encoded; it is among the characters that cannot be printed.
            if not value.isprintable() or (self.choices and value not in self.choices):
                return False
            size: float = len(value)
        else:
            size = value
        if not isfinite(size):
            return False
        return (self.minimum is None or size >= self.minimum) and (
            self.maximum is None or size <= self.maximum
        )

    def takes(self) -> str:
        """Return the valid values of the option in words, for error sentences and the docs."""
        if self.kind is tuple:
            return PHRASES_TAKES
        if self.choices:
            return "one of " + ", ".join(f"'{choice}'" for choice in self.choices)
        text = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}[self.kind]
        unit = " characters" if self.kind is str else ""
        if self.minimum is not None and self.maximum is not None:
            return f"{text} of {self.minimum:g} to {self.maximum:g}{unit}"
        if self.minimum is not None:
            return f"{text} of at least {self.minimum:g}{unit}"
        if self.maximum is not None:
            return f"{text} of at most {self.maximum:g}{unit}"
        return text


MIN_SAMPLE_RATE: Final = 8_000
MAX_SAMPLE_RATE: Final = 48_000
MIN_THRESHOLD: Final = 0.05
MAX_THRESHOLD: Final = 0.95
DETECTOR_WINDOW_MS: Final = 32
"""The speech detector judges windows of this length: nothing that it reports is shorter."""
MAX_SHORT_MS: Final = 2_000
"""Most of the speech that starts an utterance, and of the silence that is a pause."""
MAX_SILENCE_MS: Final = 60_000
MAX_PAUSE_MS: Final = 600_000

OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        "sample_rate",
        int,
        "Rate of the stream's samples, in Hz, in place of that of `hello`.",
        minimum=MIN_SAMPLE_RATE,
        maximum=MAX_SAMPLE_RATE,
    ),
    Option(
        "encoding",
        str,
        "How the samples of binary frames are written, and those of `data` where `audio` has no `encoding`.",
        choices=("pcm16", "f32", "mulaw", "alaw"),
    ),
    Option(
        "text",
        str,
        "`whole`: a result's `text` is the whole transcript so far. `new`: it is the part that is new, and"
        " `text_from` is the code point of the transcript at which it goes.",
        choices=("whole", "new"),
    ),
    Option(
        "words",
        bool,
        "Results carry `words`: each new word with its start, end and confidence.",
    ),
    Option(
        "resume",
        bool,
        "Keep the stream for `--resume-grace-s` after a lost connection, so that it can be resumed.",
    ),
    Option(
        "auto_finalize",
        bool,
        "A result where an utterance ended carries `utterances`: number, text and times; the stream goes on. "
        "Without turn detection it is a `bad_option` error.",
    ),
    Option(
        "recording",
        bool,
        "The audio is a recording that is sent faster than it was spoken: streams of people who speak now go "
        "first, and recordings have the rest of a worker, at least `--recording-rows` of each step.",
    ),
    Option(
        "language",
        str,
        "Language of a multilingual model by the model's own name, such as `de-DE`; a name that it does "
        "not have, or any with a model of one language, is a `bad_option` error.",
        minimum=1,
        maximum=32,
    ),
    Option(
        "phrases",
        tuple,
        "Names and terms that the speaker is likely to say; `boost`, 0 to 10, is how much the decoder prefers"
        " the pieces of one. A phrase that the model cannot write is a `bad_option` error, or left out where"
        " it is `optional` ([phrases.md](phrases.md)).",
    ),
    Option(
        "turn_detection",
        bool,
        "Report speech and turns; false costs nothing and leaves `last_state` null.",
    ),
    Option(
        "turn_signals",
        str,
        "Signals that may end an utterance before `turn_max_pause_ms`.",
        choices=TURN_SIGNALS,
    ),
    Option(
        "vad_threshold",
        float,
        "Probability from which 32 ms of audio count as speech.",
        minimum=MIN_THRESHOLD,
        maximum=MAX_THRESHOLD,
    ),
    Option(
        "turn_min_speech_ms",
        int,
        "Speech without a gap that starts an utterance.",
        minimum=DETECTOR_WINDOW_MS,
        maximum=MAX_SHORT_MS,
    ),
    Option(
        "turn_pause_ms",
        int,
        "Silence that is reported as a pause, and about which smart-turn is asked.",
        minimum=DETECTOR_WINDOW_MS,
        maximum=MAX_SHORT_MS,
    ),
    Option(
        "turn_silence_ms",
        int,
        "Silence that ends an utterance when no other signal has spoken (signal `vad`).",
        minimum=DETECTOR_WINDOW_MS,
        maximum=MAX_SILENCE_MS,
    ),
    Option(
        "turn_max_pause_ms",
        int,
        "Silence that ends an utterance whatever the signals say; at least the other silences.",
        minimum=DETECTOR_WINDOW_MS,
        maximum=MAX_PAUSE_MS,
    ),
)

_TABLE: Final[dict[str, Option]] = {option.name: option for option in OPTIONS}
_DEFAULTS: Final = asdict(StreamOptions())


def parse_options(values: Mapping[str, object]) -> StreamOptions:
    """Validate the options of a ``config`` message; None, JSON's null, is the same as a missing option.

    Raises ClientFault with `unknown_option` or `bad_option`.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        option = _TABLE.get(name)
        if option is None:
            known = ", ".join(sorted(_TABLE))
            raise ClientFault(
                ErrorCode.UNKNOWN_OPTION, f"There is no option {shown(name)}; there are {known}."
            )
        checked[name] = option.check(value)
    if checked.get("auto_finalize") and checked.get("turn_detection") is False:
        raise ClientFault(
            ErrorCode.BAD_OPTION, "Option 'auto_finalize' needs 'turn_detection', which is false here."
        )
    return StreamOptions(**checked)


def encode_options(options: StreamOptions) -> bytes:
    """Encode options as the JSON in a stream's hash; options with the default value are left out.

    So a worker of an older release serves a stream whose client uses no new option.
    """
    return orjson.dumps({name: value for name, value in asdict(options).items() if value != _DEFAULTS[name]})


def decode_options(data: bytes | str) -> StreamOptions:
    """Decode the JSON of `encode_options`.

    An option that this version does not know is an error, so that a rolling upgrade never decodes a
    stream without an option that its client asked for. Raises EntryError.
    """
    try:
        values = orjson.loads(data)
        if not isinstance(values, dict):
            raise EntryError("The options of a stream are not a JSON object.")
        return parse_options(values)
    except (orjson.JSONDecodeError, ClientFault) as error:
        raise EntryError(f"The options of a stream cannot be read: {error}") from error


if {field.name for field in fields(StreamOptions)} != set(_TABLE):
    raise AssertionError("common/options.py: OPTIONS and StreamOptions differ")
