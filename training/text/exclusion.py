"""Exclusion of test transcripts from the text: no line may share six words in a row with one, or be one.

The transcripts themselves are not in this repository, since some are under another licence. The hashes of
their runs of words are (`excluded.txt`), so that every machine drops the same lines. `python -m training
exclude FILES` writes that file anew.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from training.text.labels import label
from training.text.spoken_numbers import cardinal, digits

RUN_WORDS: Final = 6
# A whole transcript that is shorter than this is a common phrase: "please try again".
MIN_WHOLE_WORDS: Final = 4
HASHES: Final = Path(__file__).parent / "excluded.txt"


class Exclusion:
    """Finds labels that overlap a test transcript."""

    def __init__(self, hashes: frozenset[str]) -> None:
        self._hashes = hashes

    @classmethod
    def shipped(cls) -> Exclusion:
        """Return the exclusion of the transcripts of all tests and benchmarks."""
        return cls(frozenset(HASHES.read_text(encoding="ascii").split()))

    @classmethod
    def of(cls, transcripts: Iterable[str]) -> Exclusion:
        """Return the exclusion of given transcripts."""
        return cls(frozenset(found for text in transcripts for found in _hashes_of(text)))

    def overlaps(self, text: str) -> bool:
        """Whether a label is a test transcript or shares a run of words with one."""
        words = text.split()
        whole = _hash(words) in self._hashes if len(words) >= MIN_WHOLE_WORDS else False
        return whole or any(_hash(run) in self._hashes for run in _runs(words))

    def write(self, path: Path) -> None:
        """Write the hashes, sorted, one on each line."""
        path.write_text("".join(f"{one}\n" for one in sorted(self._hashes)), encoding="ascii")

    def __len__(self) -> int:
        return len(self._hashes)


def read_transcripts(path: Path) -> Iterator[str]:
    """Yield the texts of a file: JSON with `text`, PocketSphinx' or Asterisk's lists, or plain lines.

    PocketSphinx writes ``<s> words </s> (name)``, Asterisk ``name: words``; either may be compressed by gzip.
    """
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")
    if path.suffix == ".json":
        yield from (item["text"] for item in json.loads(text))
        return
    for line in text.splitlines():
        if not line.strip() or line.startswith(";"):
            continue
        line = re.sub(r"\s*\([\w.-]+\)\s*$", "", re.sub(r"</?s>", "", line))
        yield re.sub(r"^[\w/.-]+:\s+", "", line).strip()


def _hashes_of(transcript: str) -> Iterator[str]:
    """Yield hashes for each reading of a transcript's digits: unchanged, as numbers, one by one."""
    ways = {
        transcript,
        re.sub(r"\d+", lambda match: f" {cardinal(int(match[0]))} ", transcript),
        re.sub(r"\d+", lambda match: f" {digits(match[0])} ", transcript),
    }
    for way in ways:
        words = label(way).split()
        if len(words) >= MIN_WHOLE_WORDS:
            yield _hash(words)
        yield from (_hash(run) for run in _runs(words))


def _runs(words: list[str]) -> Iterator[list[str]]:
    return (words[start : start + RUN_WORDS] for start in range(len(words) - RUN_WORDS + 1))


def _hash(words: list[str]) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]
