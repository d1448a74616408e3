"""The transcript of a recording, collected from its results and written as text, subtitles or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from common.captions.subtitles import cues, srt, vtt
from common.errors import ServiceError, SettingsError
from common.messages import Result, Utterance, Word

FORMATS: Final = ("txt", "srt", "vtt", "json")


class NoOutput(ServiceError):  # noqa: N818 - the name says it
    """A file that cannot be written."""


def format_of(path: str) -> str:
    """Return the format of a file by its name; txt for a name without an ending.

    Raises SettingsError for an ending without a format.
    """
    suffix = Path(path).suffix.lower()
    if not suffix:
        return "txt"
    if suffix[1:] not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise SettingsError(
            f"--output got {path!r}, whose ending says no format: it takes {endings}, or any with --format."
        )
    return suffix[1:]


class Transcript:
    """The text, words and utterances so far.

    rate: samples a second of the audio that results count.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.text = ""
        self.seconds = 0.0
        self._words: list[Word] = []
        self._utterances: list[Utterance] = []

    def add(self, result: Result) -> None:
        """Add the next result."""
        self.text = result.text
        self.seconds = result.audio_ack_samples / self._rate
        self._words.extend(result.words or ())
        self._utterances.extend(result.utterances)

    def written(self, format_name: str, *, words: bool = False) -> str:
        """Return the transcript in one of FORMATS. words: for txt, a line for each word with its times."""
        if format_name == "json":
            return self._json()
        if format_name in ("srt", "vtt"):
            found = cues(self._words, self._utterances)
            return srt(found) if format_name == "srt" else vtt(found)
        if words:
            return "".join(
                f"{word.start_s:.2f}\t{word.end_s:.2f}\t{word.confidence:.3f}\t{word.word}\n"
                for word in self._words
            )
        return f"{self.text}\n"

    def _json(self) -> str:
        entry = {
            "text": self.text,
            "duration_s": round(self.seconds, 3),
            "words": [asdict(word) for word in self._words],
            "utterances": [asdict(utterance) for utterance in self._utterances],
        }
        return json.dumps(entry, ensure_ascii=False) + "\n"


def check_output(path: str) -> None:
    """Raise SettingsError if a file cannot be written, before any audio is sent."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise SettingsError(f"--output {path} cannot be written: there is no folder {folder}.")
    if Path(path).is_dir():
        raise SettingsError(f"--output {path} cannot be written: it is a folder.")


def write_output(path: str, text: str) -> None:
    """Write a file. Raises NoOutput."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise NoOutput(f"--output {path} cannot be written: {error.strerror}.") from error
