"""Subtitles from words with times: SubRip (srt) and WebVTT (vtt).

A cue ends with its utterance, and has at most two lines of 42 characters and 7 s, as the guidelines of
broadcasters require (BBC, Netflix).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from common.captions.words_of_texts import words_of_texts
from common.messages import Utterance, Word

LINE_CHARACTERS: Final = 42
MAX_LINES: Final = 2
MAX_CUE_S: Final = 7.0
_SHORTEST_CUE_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines shown from one time to another, in seconds from the first sample."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


def cues(words: Iterable[Word], utterances: Sequence[Utterance] = ()) -> Iterator[Cue]:
    """Yield the cues of words in order; no cue has words of two utterances."""
    for said in words_of_texts(words, [utterance.text for utterance in utterances]):
        held: list[Word] = []
        for word in said:
            if held and not _fits([*held, word]):
                yield from _cues(held)
                held = []
            held.append(word)
        if held:
            yield from _cues(held)


def _fits(words: Sequence[Word]) -> bool:
    return words[-1].end_s - words[0].start_s <= MAX_CUE_S and len(_lines(words)) <= MAX_LINES


def _lines(words: Sequence[Word]) -> list[str]:
    return textwrap.wrap(" ".join(word.word for word in words), LINE_CHARACTERS)


def _cues(words: Sequence[Word]) -> Iterator[Cue]:
    """Yield one cue, or several in a row for a word that needs more lines than a cue has."""
    lines, start_s = _lines(words), words[0].start_s
    num_cues = -(-len(lines) // MAX_LINES)
    # A word can last long, too, if the model emitted it late.
    length_s = min(max((words[-1].end_s - start_s) / num_cues, _SHORTEST_CUE_S), MAX_CUE_S)
    for number in range(num_cues):
        shown = tuple(lines[number * MAX_LINES : (number + 1) * MAX_LINES])
        yield Cue(start_s + number * length_s, start_s + (number + 1) * length_s, shown)


def srt(all_cues: Iterable[Cue]) -> str:
    """Return cues as the text of a SubRip file."""
    return "".join(
        f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n" + "\n".join(cue.lines) + "\n\n"
        for number, cue in enumerate(all_cues, 1)
    )


def vtt(all_cues: Iterable[Cue]) -> str:
    """Return cues as the text of a WebVTT file."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(cue.start_s, '.')} --> {_time(cue.end_s, '.')}\n" + _escaped("\n".join(cue.lines)) + "\n\n"
        for cue in all_cues
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
