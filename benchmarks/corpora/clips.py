"""Real recordings with transcripts for `benchmarks.wer`, which are not in the training data.

- `asterisk`: a studio voice, asterisk-core-sounds-en-g722 with the texts of asterisk-core-sounds-en
  (CC-BY-SA-3.0); a sample of the clips, the same for the same seed. Clips without speech are left out.
- `librivox`: readers at home, of pocketsphinx-testdata (public domain).
- `recordings`: the recordings bundled with this package.
"""

import argparse
import json
import random
import re
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpora.asterisk import RATE, read_g722, recordings_of, spoken, texts_of
from training.text.spoken_numbers import cardinal

SEED: Final = 8
# Shorter texts are single words and letters, which say little about a stream of speech.
MIN_WORDS: Final = 2
LEAD_S, TAIL_S, GAP_S = 0.2, 1.0, 1.6
NOISE: Final = 1e-4
_LIBRIVOX: Final = "share/pocketsphinx/test/data/librivox"
RECORDINGS: Final = Path(__file__).parents[2] / "parakeet" / "recordings"


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, int16 at 16 kHz, and its transcript."""

    name: str
    source: str
    samples: NDArray[np.int16]
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `read_clips`."""
    parser.add_argument(
        "--sources",
        nargs="+",
        default=["asterisk", "librivox", "recordings"],
        help="where recordings are from",
    )
    parser.add_argument(
        "--usr", type=Path, default=Path("/usr"), help="where Debian's packages are installed"
    )
    parser.add_argument("--max-asterisk", type=int, default=120, help="clips of Asterisk that are drawn")


def read_clips(sources: Sequence[str], usr: Path, max_asterisk: int) -> list[Clip]:
    """Return the clips of some sources.

    Args:
        sources: of "asterisk", "librivox", "recordings".
        usr: folder of the packages' files, `/usr` or a folder into which they were unpacked.
        max_asterisk: clips of Asterisk that are drawn; those without speech among them are left out.

    Raises FileNotFoundError if a package is missing.
    """
    clips: list[Clip] = []
    for source in sources:
        if source == "asterisk":
            clips += _asterisk(usr, max_asterisk)
        elif source == "librivox":
            clips += _librivox(usr / _LIBRIVOX)
        else:
            described = json.loads((RECORDINGS / "clips.json").read_text(encoding="utf-8"))
            clips += [
                Clip(one["file"], source, _wav(RECORDINGS / one["file"]), one["text"]) for one in described
            ]
    return clips


def streams(clips: Sequence[Clip], per_stream: int) -> Iterator[tuple[NDArray[np.int16], str]]:
    """Yield audio and text of streams of `per_stream` clips, each stream with a faint floor of noise.

    One clip has 0.2 s in front and 1 s behind; several stand 1.6 s apart.
    """
    rng = np.random.default_rng(SEED)
    for first in range(0, len(clips), per_stream):
        group = clips[first : first + per_stream]
        gap = np.zeros(int(GAP_S * RATE), np.int16)
        parts: list[NDArray[np.int16]] = [np.zeros(int(LEAD_S * RATE), np.int16)]
        for clip in group:
            parts += [clip.samples, gap]
        parts[-1] = np.zeros(int(TAIL_S * RATE), np.int16)
        audio = np.concatenate(parts).astype(np.float64)
        audio += NOISE * 32_768 * rng.standard_normal(len(audio))
        yield (
            np.rint(np.clip(audio, -32_768, 32_767)).astype(np.int16),
            " ".join(normalised(clip.text) for clip in group),
        )


def normalised(text: str) -> str:
    """Return a transcript normalised for counting: numbers as words, no hyphens, percent signs as words."""
    text = text.lower().replace("’", "'").replace("-", " ").replace("%", " percent ")
    return re.sub(r"\d+", lambda match: f" {cardinal(int(match[0]))} ", text)


def _asterisk(usr: Path, count: int) -> list[Clip]:
    texts, recordings = texts_of(usr), recordings_of(usr)
    # Silence and beeps are drawn, too, and left out after it: so the draw is that of all earlier results.
    drawn = [
        name
        for name, text in sorted(texts.items())
        if name in recordings and len(text.split()) >= MIN_WORDS and "[" not in text
    ]
    random.Random(SEED).shuffle(drawn)
    return [
        Clip(name, "asterisk", read_g722(recordings[name]), text)
        for name in drawn[:count]
        if len((text := spoken(texts[name])).split()) >= MIN_WORDS
    ]


def _librivox(folder: Path) -> list[Clip]:
    clips = []
    for line in (folder / "transcription").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"<s>(.*)</s>\s*\((.*)\)\s*", line)
        if match and (folder / f"{match[2]}.wav").is_file():
            clips.append(Clip(match[2], "librivox", _wav(folder / f"{match[2]}.wav"), match[1].strip()))
    if not clips:
        raise FileNotFoundError(f"no clips in {folder}: apt-get install pocketsphinx-testdata")
    return clips


def _wav(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path)) as recording:
        if (recording.getframerate(), recording.getnchannels()) != (RATE, 1):
            raise ValueError(f"{path} is not mono at {RATE} Hz")
        return np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
