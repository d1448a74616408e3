"""The effect of phrases on transcripts: recall of listed words, word errors of the rest, false words.

    apt-get install ffmpeg asterisk-core-sounds-en asterisk-core-sounds-en-g722 pocketsphinx-testdata
    python -m benchmarks.phrases --out benchmarks/results/phrases-tiny_DATE.json

The listed words are chosen from transcripts alone, before anything is decoded: of each source, the words of
at least `MIN_LETTERS` letters that stand in one of its clips only. Every stream of the source gets them all
("right list"). "Wrong list" has `NUM_WRONG` such words of other texts, of Asterisk and of the other sources,
none of which is said in the source. An engine decodes every clip without a list, and with each list at each
boost.

Then sounds without speech, with a list of `NUM_SOUND_PHRASES` words: silence must give the same tokens as
without, noise, keyboard and music no listed word and no more tokens than without.
"""

import argparse
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.command_line import command_line
from benchmarks.corpora.asterisk import spoken, texts_of
from benchmarks.corpora.clips import SEED, Clip, add_arguments, normalised, read_clips, streams
from benchmarks.results_file import write_results
from common.entries import StreamId
from common.options import StreamOptions
from common.phrases import DEFAULT_BOOST, Phrase
from gpu_worker.boosting.spelling import tree_of
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.model.layers.decoding import Fusion
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.model.model import StepInputs, StreamingModel
from gpu_worker.model.state import SlotState
from gpu_worker.steps.eager import EagerSteps
from gpu_worker.steps.eager_trees import BoostedRows, Trees
from gpu_worker.steps.factory import make_model_engine
from parakeet.check.word_errors import words_of

ROOT: Final = Path(__file__).parents[1]
RATE: Final = 16_000
MIN_LETTERS: Final = 6
NUM_WRONG: Final = 200
NUM_SOUND_PHRASES: Final = 100
_SLOTS: Final = 32

Phrases = tuple[Phrase, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of one source under one list.

    said, heard: times that a listed word (of the right list) was said, and was heard in its place.
    made_up: listed words (of the list in use) that were heard where another word, or none, was said.
    rest_errors, rest_words: word errors and words of all that is not listed.  errors, words: of all.
    """

    source: str
    phrases: str
    boost: float
    said: int
    heard: int
    made_up: int
    rest_errors: int
    rest_words: int
    errors: int
    words: int

    @property
    def recall(self) -> float:
        """Of the listed words, in percent."""
        return 100 * self.heard / self.said

    @property
    def rest_percent(self) -> float:
        """Word error rate of the rest."""
        return 100 * self.rest_errors / self.rest_words

    @property
    def percent(self) -> float:
        """Word error rate of all."""
        return 100 * self.errors / self.words


@dataclass(frozen=True, slots=True)
class Sound:
    """Tokens of a sound without and with phrases, and listed words that were heard in it."""

    name: str
    seconds: float
    boost: float
    tokens_without: int
    tokens_with: int
    same: bool
    listed: int


def listed_words(clips: Sequence[Clip]) -> list[str]:
    """Return the listed words: words of at least `MIN_LETTERS` letters that occur in one clip only."""
    clips_of = Counter(word for clip in clips for word in set(words_of(normalised(clip.text))))
    return sorted(word for word, count in clips_of.items() if count == 1 and len(word) >= MIN_LETTERS)


def wrong_words(others: Sequence[str], said: Sequence[Clip]) -> list[str]:
    """So many words of other texts that nobody says in these, nor any that contains one or is contained."""
    here = {word for clip in said for word in words_of(normalised(clip.text))}
    there = {word for text in others for word in words_of(normalised(text))} - here
    found = sorted(
        word
        for word in there
        if len(word) >= MIN_LETTERS
        and not any(word in other or other in word for other in here if len(other) > 3)
    )
    if len(found) < NUM_WRONG:
        raise SystemExit(f"the other texts have {len(found)} words for a wrong list, and not {NUM_WRONG}")
    random.Random(SEED).shuffle(found)
    return found[:NUM_WRONG]


def aligned(expected: Sequence[str], heard: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Return the words of both side by side, with the fewest errors; None where one has no word."""
    rows, columns = len(expected) + 1, len(heard) + 1
    cost = np.zeros((rows, columns), dtype=np.int32)
    cost[:, 0], cost[0] = np.arange(rows), np.arange(columns)
    for row in range(1, rows):
        for column in range(1, columns):
            cost[row, column] = min(
                cost[row - 1, column - 1] + (expected[row - 1] != heard[column - 1]),
                cost[row - 1, column] + 1,
                cost[row, column - 1] + 1,
            )
    pairs: list[tuple[str | None, str | None]] = []
    row, column = rows - 1, columns - 1
    while row or column:
        if row and column:
            other = expected[row - 1] != heard[column - 1]
            if cost[row, column] == cost[row - 1, column - 1] + other:
                row, column = row - 1, column - 1
                pairs.append((expected[row], heard[column]))
                continue
        if row and cost[row, column] == cost[row - 1, column] + 1:
            row -= 1
            pairs.append((expected[row], None))
        else:
            column -= 1
            pairs.append((None, heard[column]))
    return pairs[::-1]


class _ManyDecodings(StreamingModel):
    """Decodes what it has encoded once under several lists: phrases change nothing before the decoder."""

    def __init__(self, loaded: LoadedModel, context: tuple[int, int]) -> None:
        super().__init__(loaded, context, reset_at_end=True)
        self._trees: list[Trees] = []
        self._states: list[SlotState] = []
        self.tokens: list[dict[int, list[int]]] = []

    def begin(self, trees: Sequence[PhraseTree | None]) -> None:
        """Forget what was decoded; decode what comes under each of these."""
        self._trees = [(tree, None) for tree in trees]
        self._states = [self.make_state(_SLOTS) for _ in trees]
        self.tokens = [{} for _ in trees]

    def decode(
        self, encoded_BTD: Tensor, step: StepInputs, state: SlotState, fusion: Fusion | None = None
    ) -> None:
        """Keep the tokens; the engine is told of none."""
        fresh = step.slots_B[step.start_B == 0]
        for trees, own, tokens in zip(self._trees, self._states, self.tokens, strict=True):
            own.reset(fresh)
            boosted: BoostedRows | None = None
            if trees[0] is not None:
                boosted = BoostedRows([trees] * len(step.slots_B), own.node_SM[step.slots_B])
            emissions = super().decode(encoded_BTD, step, own, boosted)
            if boosted is not None:
                own.node_SM[step.slots_B] = boosted.nodes_BM
            if emissions is None:
                continue
            for row, slot in enumerate(step.slots_B.tolist()):
                said = emissions.token_EB[:, row]
                tokens.setdefault(slot, []).extend(said[said >= 0].tolist())


class Decoder:
    """An engine that decodes recordings whole, many at once."""

    def __init__(self, loaded: LoadedModel, chunk_ms: int) -> None:
        context = loaded.config.context_for_chunk(chunk_ms)
        config = EngineConfig(
            num_slots=_SLOTS, context=context, max_step_frames=64, turn_detection=False, phrase_bytes=0
        )
        self._tokenizer = loaded.tokenizer
        self._model = _ManyDecodings(loaded, context)
        self._shape, self._sizes = make_model_engine(loaded, config).steps.shape, config.batch_sizes

    def run(self, audio: Sequence[NDArray[np.int16]], lists: Sequence[Phrases]) -> list[list[list[int]]]:
        """Tokens of each recording under each list."""
        model = self._model
        trees = [tree_of(self._tokenizer, phrases) if phrases else None for phrases in lists]
        found: list[list[list[int]]] = [[] for _ in lists]
        for first in range(0, len(audio), _SLOTS):
            part = audio[first : first + _SLOTS]
            model.begin(trees)
            # A fresh engine gives its slots out in order.
            engine = SpeechEngine(EagerSteps(model, self._shape, self._sizes, None), self._tokenizer)
            position = dict.fromkeys(range(len(part)), 0)
            for number in position:
                engine.open(StreamId(number), StreamOptions())
            while position or engine.has_work():
                for number, at in list(position.items()):
                    # So that no stream takes memory for all of its audio at once.
                    engine.feed(StreamId(number), part[number][at : at + 10 * RATE])
                    position[number] = at + 10 * RATE
                    if position[number] >= len(part[number]):
                        engine.finish(StreamId(number))
                        del position[number]
                while engine.has_work():
                    engine.step()
            for tokens, of_slots in zip(found, model.tokens, strict=True):
                tokens += [of_slots.get(number, []) for number in range(len(part))]
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self._tokenizer.decode(tokens)


def counted(
    source: str, name: str, boost: float, expected: Sequence[str], heard: Sequence[str],
    right: frozenset[str], in_use: frozenset[str],
) -> Row:  # fmt: skip
    """Count the words of a source's transcripts."""
    said = hits = made_up = rest_errors = rest_words = errors = words = 0
    for text, other in zip(expected, heard, strict=True):
        for want, got in aligned(words_of(text), words_of(normalised(other))):
            wrong = want != got
            errors, words = errors + wrong, words + (want is not None)
            made_up += wrong and got in in_use
            if want in right:
                said, hits = said + 1, hits + (not wrong)
            else:
                rest_errors, rest_words = rest_errors + wrong, rest_words + (want is not None)
    return Row(source, name, boost, said, hits, made_up, rest_errors, rest_words, errors, words)


def on_recordings(arguments: argparse.Namespace, decoder: Decoder) -> tuple[list[Row], dict[str, list[str]]]:
    """All sources under all lists and boosts; and the lists."""
    clips_of = {
        source: read_clips([source], arguments.usr, arguments.max_asterisk) for source in arguments.sources
    }
    texts = [spoken(text) for text in texts_of(arguments.usr).values()]
    texts += [clip.text for clips in clips_of.values() for clip in clips]
    rows: list[Row] = []
    lists: dict[str, list[str]] = {}
    for source, clips in clips_of.items():
        # A source's own texts add nothing: all of their words are said in it.
        right, wrong = listed_words(clips), wrong_words(texts, clips)
        lists |= {f"{source}, right": right, f"{source}, wrong": wrong}
        pairs = list(streams(clips, 1))
        audio, expected = [samples for samples, _ in pairs], [text for _, text in pairs]

        plan: list[tuple[str, float, list[str]]] = [("none", 0.0, [])]
        plan += [
            pair for boost in arguments.boosts for pair in (("right", boost, right), ("wrong", boost, wrong))
        ]
        lists_of_plan = [tuple(Phrase(word, boost) for word in words) for _, boost, words in plan]
        heard = decoder.run(audio, lists_of_plan)
        for (name, boost, words), found in zip(plan, heard, strict=True):
            said = [decoder.text(tokens) for tokens in found]
            row = counted(source, name, boost, expected, said, frozenset(right), frozenset(words))
            rows.append(row)
            print(
                f"{source:10} {name:6} {boost:4.1f}: recall {row.recall:5.1f} %, word errors of the rest "
                f"{row.rest_percent:5.1f} %, of all {row.percent:5.1f} %, made up {row.made_up}",
                flush=True,
            )
    return rows, lists


def sounds(seconds: float) -> dict[str, NDArray[np.int16]]:
    """Sounds without speech, int16 at 16 kHz."""
    rng, num = np.random.default_rng(SEED), int(seconds * RATE)
    at = np.arange(num) / RATE
    white = rng.standard_normal(num)
    # Pink: each octave has the same energy.
    spectrum = np.fft.rfft(white) / np.sqrt(np.maximum(np.arange(num // 2 + 1), 1))
    pink = np.fft.irfft(spectrum, num)
    keys = np.zeros(num)
    for start in np.cumsum(rng.uniform(0.08, 0.4, int(seconds * 5))):
        first = int(start * RATE)
        click = rng.standard_normal(400) * np.exp(-np.arange(400) / 60)
        keys[first : first + 400] += click[: max(0, num - first)][: len(keys[first : first + 400])]
    music = np.zeros(num)
    for bar in range(int(seconds / 0.5)):
        root = 220.0 * 2 ** (rng.integers(0, 12) / 12)
        first, last = int(bar * 0.5 * RATE), min(num, int((bar + 1) * 0.5 * RATE))
        t = at[first:last] - at[first]
        for ratio in (1.0, 1.25, 1.5, 2.0):
            music[first:last] += np.sin(2 * np.pi * root * ratio * t) * np.exp(-3 * t)
    scaled = {
        "white noise": 0.05 * white,
        "pink noise": 0.1 * pink / np.abs(pink).max() * 5,
        "keyboard": 0.2 * keys / np.abs(keys).max(),
        "music": 0.3 * music / np.abs(music).max(),
    }
    return {name: np.rint(np.clip(sound, -1, 1) * 32_767).astype(np.int16) for name, sound in scaled.items()}


def on_sounds(arguments: argparse.Namespace, decoder: Decoder, words: Sequence[str]) -> list[Sound]:
    """Silence for ten minutes and the other sounds for one, without and with phrases."""
    silence = np.zeros(int(arguments.silence_s * RATE), np.int16)
    audio = {"silence": silence, **sounds(arguments.sound_s)}
    listed = words[:NUM_SOUND_PHRASES]
    lists = [(), *(tuple(Phrase(word, boost) for word in listed) for boost in arguments.boosts)]
    without, *boosted = decoder.run(list(audio.values()), lists)
    found = []
    for boost, heard in zip(arguments.boosts, boosted, strict=True):
        for (name, samples), before, tokens in zip(audio.items(), without, heard, strict=True):
            said_before = Counter(words_of(decoder.text(before)))
            said = Counter(word for word in words_of(decoder.text(tokens)) if word in listed)
            made_up = sum((said - said_before).values())
            one = Sound(name, len(samples) / RATE, boost, len(before), len(tokens), before == tokens, made_up)
            found.append(one)
            print(
                f"{name:12} {boost:4.1f}: {one.tokens_without} tokens without, {one.tokens_with} with, "
                f"{'the same' if one.same else 'others'}, {one.listed} listed words",
                flush=True,
            )
    return found


def tables(rows: Sequence[Row], heard: Sequence[Sound]) -> list[str]:
    """Markdown."""
    lines = [
        "| source | list | boost | recall of the listed words | word errors of the rest | of all | made up |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.source} | {row.phrases} | {row.boost:g} | {row.recall:.1f} % ({row.heard} of {row.said}) "
        f"| {row.rest_percent:.1f} % | {row.percent:.1f} % | {row.made_up} |"
        for row in rows
    ]
    lines += [
        "",
        "| sound | seconds | boost | tokens without | with | the same | listed words |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    lines += [
        f"| {one.name} | {one.seconds:g} | {one.boost:g} | {one.tokens_without} | {one.tokens_with} "
        f"| {'yes' if one.same else 'no'} | {one.listed} |"
        for one in heard
    ]
    return lines


def main() -> None:
    parser = command_line(__file__, __doc__)
    parser.add_argument("--model-size", default="tiny", help="model variant")
    parser.add_argument("--chunk-ms", type=int, default=160, help="audio of one model call")
    add_arguments(parser)
    parser.add_argument(
        "--boosts", type=float, nargs="+", default=[0.25, 0.4, 0.5, 0.75, 1.0, 2.0, 3.0], help="boosts to try"
    )
    parser.add_argument("--silence-s", type=float, default=600.0, help="seconds of silence")
    parser.add_argument("--sound-s", type=float, default=60.0, help="seconds of each other sound")
    parser.add_argument("--out", type=Path, help="JSON; a table stands beside it as .md")
    arguments = parser.parse_args()
    started = time.monotonic()
    decoder = Decoder(load_model(None, size=arguments.model_size), arguments.chunk_ms)
    rows, lists = on_recordings(arguments, decoder)
    heard = on_sounds(arguments, decoder, lists[f"{arguments.sources[0]}, right"])
    print("\n".join(tables(rows, heard)))
    if arguments.out:
        write_results(
            arguments.out,
            "Phrase boosting",
            {"machine": f"{platform.machine()}, CPU", "default boost": DEFAULT_BOOST},
            tables(rows, heard),
            recordings=[asdict(row) for row in rows],
            sounds=[asdict(one) for one in heard],
            lists=lists,
        )
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
