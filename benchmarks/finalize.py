"""Word errors of streams that are finalized at pauses, by the way of finalizing.

    python -m benchmarks.finalize --transcripts core-sounds-en.txt.gz

Streams are recordings of Debian's asterisk-core-sounds-en-g722 (CC-BY-SA-3.0; the transcripts are in the
documentation of asterisk-core-sounds-en) one after the other, with a pause between them, and they are
finalized in each pause. Ways:

- `none`: they are not finalized;
- `segment`: the engine ends a segment, and begins the next one without what it heard before;
- `beside`: a copy of the stream hears the rest of the chunk and ends, and the stream itself goes on with all
  that it heard. What it says of frames before the cut is left out, since the copy has said it;
- `beside, matched`: it also leaves out tokens with which it says again what the copy said last.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.command_line import command_line
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.transcript import Vocabulary
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.steps.factory import make_model_engine
from parakeet.check.word_errors import word_errors

RATE: Final = 16_000
FRAME_SAMPLES: Final = 1_280
LOUD_DB: Final = -35.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A recording without the silence at its ends, and its transcript."""

    samples: NDArray[np.float32]
    text: str


@dataclass(frozen=True, slots=True)
class Session:
    """One stream, the positions of its finalizes, and its transcript."""

    samples: NDArray[np.float32]
    cuts: tuple[int, ...]
    text: str


def prompts(sounds: Path, transcripts: Path) -> list[Prompt]:
    """Return recordings of at least four words, without letters, digits or terms of telephony."""
    lines = gzip.decompress(transcripts.read_bytes()).decode("latin-1").splitlines()
    found = []
    for line in sorted(lines):
        name, colon, text = line.partition(": ")
        path = sounds / f"{name}.g722"
        if not colon or not path.exists() or len(text.split()) < 4 or re.search(r"[\[\d<(*#]|[A-Z]{2}", text):
            continue
        command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "s16le", "-ac", "1"]
        pcm = subprocess.run(
            [*command, "-ar", str(RATE), "-"], check=True, capture_output=True, timeout=30
        ).stdout
        samples = np.divide(np.frombuffer(pcm, "<i2"), 32_768, dtype=np.float32)
        level = np.sqrt(np.mean(samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2, axis=1))
        loud = np.flatnonzero(level > np.percentile(level, 95) * 10 ** (LOUD_DB / 20))
        found.append(Prompt(samples[loud[0] * 160 : (loud[-1] + 1) * 160], text))
    return found


def sessions(
    of: Sequence[Prompt], *, per_session: int, pause_s: float, cut_after_s: float, seed: int
) -> Iterable[Session]:
    """Streams of some recordings each, finalized so long after the end of each but the last."""
    chance = random.Random(seed)
    order = list(of)
    chance.shuffle(order)
    noise = np.random.default_rng(seed)
    for at in range(0, len(order) - per_session + 1, per_session):
        parts: list[NDArray[np.float32]] = []
        cuts, length = [], 0
        for prompt in order[at : at + per_session]:
            pause = int(RATE * (pause_s + chance.uniform(-0.1, 0.1)))
            parts += (prompt.samples, np.zeros(pause, np.float32))
            length += len(prompt.samples)
            cuts.append(length + int(cut_after_s * RATE))
            length += pause
        samples = np.concatenate(parts)
        samples = samples + noise.normal(0, 1e-3, len(samples)).astype(np.float32)
        yield Session(
            samples, tuple(cuts[:-1]), " ".join(prompt.text for prompt in order[at : at + per_session])
        )


class Recognizer:
    """An engine without turn detection, which decodes one stream after another."""

    def __init__(self, model: str, chunk_ms: int) -> None:
        loaded = load_model(None, size=model)
        context = loaded.config.context_for_chunk(chunk_ms)
        config = EngineConfig(
            num_slots=2, context=context, batch_sizes=BatchSizes(2, 2, 2), turn_detection=False
        )
        self.engine: SpeechEngine = make_model_engine(loaded, config)
        self.vocabulary: Vocabulary = loaded.tokenizer
        self._last = 0

    def open(self, snapshot: bytes | None = None) -> StreamId:
        """Return a new stream, or one that continues from a snapshot."""
        self._last += 1
        stream = StreamId(self._last)
        self.engine.open(stream, StreamOptions(), snapshot)
        return stream

    def hear(
        self, stream: StreamId, samples: NDArray[np.float32], *, finish: bool = False
    ) -> list[StreamOutput]:
        """Feed audio, and decode all whole chunks."""
        self.engine.feed(stream, samples)
        if finish:
            self.engine.finish(stream)
        outputs: list[StreamOutput] = []
        while self.engine.has_work():
            outputs += self.engine.step()
        return outputs


def tokens_of(outputs: Iterable[StreamOutput]) -> list[tuple[int, int]]:
    """Return the tokens with their frames."""
    return [token for output in outputs for token in zip(output.token_ids, output.token_frames, strict=True)]


def whole(recognizer: Recognizer, session: Session) -> str:
    """Return the text without any cut."""
    return recognizer.hear(recognizer.open(), session.samples, finish=True)[-1].text


def in_segments(recognizer: Recognizer, session: Session) -> str:
    """Return the text if each cut ends a segment."""
    bounds = (0, *session.cuts, len(session.samples))
    return " ".join(
        recognizer.hear(recognizer.open(), session.samples[begin:end], finish=True)[-1].text
        for begin, end in pairwise(bounds)
    )


def beside(recognizer: Recognizer, session: Session, *, matched: bool) -> str:
    """Return the text if a copy of the stream ends at each cut."""
    stream, at = recognizer.open(), 0
    said: list[int] = []
    before = 0  # frames that copies have said
    last: list[int] = []  # tokens that the last one said
    for cut in (*session.cuts, len(session.samples)):
        final = cut == len(session.samples)
        new = tokens_of(recognizer.hear(stream, session.samples[at:cut], finish=final))
        kept = [token for token, frame in new if frame >= before]
        if matched:
            for size in range(min(len(last), len(kept), 8), 0, -1):
                if last[-size:] == kept[:size]:
                    kept = kept[size:]
                    break
        said += kept
        last = [] if kept else last
        at = cut
        if final:
            break
        decoded = recognizer.engine.samples_decoded(stream)
        copy = recognizer.open(recognizer.engine.snapshot(stream).to_bytes())
        rest = tokens_of(recognizer.hear(copy, session.samples[decoded:cut], finish=True))
        rest = [(token, frame) for token, frame in rest if frame >= before]
        said += [token for token, _ in rest]
        last = [token for token, _ in rest]
        before = -(-cut // FRAME_SAMPLES)
    return recognizer.vocabulary.decode([t for t in said if not recognizer.vocabulary.is_special(t)])


def main() -> None:
    """Print a table."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--sounds",
        type=Path,
        default=Path("/usr/share/asterisk/sounds/en_US_f_Allison"),
        help="folder of the recordings",
    )
    parser.add_argument(
        "--transcripts", type=Path, required=True, help="core-sounds-en.txt.gz of asterisk-core-sounds-en"
    )
    parser.add_argument("--model-size", default="tiny", help="model variant")
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    parser.add_argument("--sessions", type=int, default=1_000, help="streams at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    of = prompts(given.sounds, given.transcripts)
    recognizer = Recognizer(given.model_size, given.chunk_ms)
    ways: dict[str, Callable[[Recognizer, Session], str]] = {
        "none": whole,
        "segment": in_segments,
        "beside": lambda recognizer, session: beside(recognizer, session, matched=False),
        "beside, matched": lambda recognizer, session: beside(recognizer, session, matched=True),
    }
    print(f"{len(of)} recordings, {sum(len(p.samples) for p in of) / RATE / 60:.1f} min")
    print("| pause, s | cut after, s | way | words | word errors, % |\n|---|---|---|---|---|")
    for pause_s, cut_after_s in ((0.8, 0.4), (0.8, 0.1), (0.3, 0.15)):
        errors = dict.fromkeys(ways, 0)
        words = 0
        chosen = list(sessions(of, per_session=6, pause_s=pause_s, cut_after_s=cut_after_s, seed=1))[
            : given.sessions
        ]
        for session in chosen:
            for name, way in ways.items():
                wrong, of_words = word_errors(session.text, way(recognizer, session))
                errors[name] += wrong
            words += of_words
        for name, wrong in errors.items():
            print(f"| {pause_s} | {cut_after_s} | {name} | {words} | {100 * wrong / words:.1f} |", flush=True)


if __name__ == "__main__":
    main()
