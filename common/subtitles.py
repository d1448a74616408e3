"""Words with times as subtitles: SubRip (srt) and WebVTT (vtt).

A cue ends at an utterance's end, and has at most two lines of 42 characters and 7 s, as broadcasters ask for
(BBC and Netflix guidelines).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from common.messages import Word

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


def cues(words: Iterable[Word], utterance_ends_s: Sequence[float] = ()) -> Iterator[Cue]:
    """Yield the cues of words in order; no cue goes over one of the utterances' ends."""
    ends = iter(sorted(utterance_ends_s))
    end_s = next(ends, None)
    held: list[Word] = []
    for word in words:
        over = False
        while end_s is not None and word.start_s >= end_s:
            over, end_s = True, next(ends, None)
        if held and (over or not _fits([*held, word])):
            yield _cue(held)
            held = []
        held.append(word)
    if held:
        yield _cue(held)


def _fits(words: Sequence[Word]) -> bool:
    return words[-1].end_s - words[0].start_s <= MAX_CUE_S and len(_lines(words)) <= MAX_LINES


def _lines(words: Sequence[Word]) -> list[str]:
    return textwrap.wrap(" ".join(word.word for word in words), LINE_CHARACTERS)


def _cue(words: Sequence[Word]) -> Cue:
    start_s = words[0].start_s
    # One word that is longer than a cue keeps its lines.
    return Cue(start_s, max(words[-1].end_s, start_s + _SHORTEST_CUE_S), tuple(_lines(words)))


def srt(all_cues: Iterable[Cue]) -> str:
    """Write cues as a SubRip file."""
    return "".join(
        f"{number}\n{_time(cue.start_s, ',')} --> {_time(cue.end_s, ',')}\n" + "\n".join(cue.lines) + "\n\n"
        for number, cue in enumerate(all_cues, 1)
    )


def vtt(all_cues: Iterable[Cue]) -> str:
    """Write cues as a WebVTT file."""
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
