"""The cost of phrases for a step: times of full steps with none, a few and all of their streams boosted.

    python -m benchmarks.phrase_steps                                   # on a GPU: small-160, 4,096 streams
    python -m benchmarks.phrase_steps --device cpu --row mini-160 --streams 8 --steps 4 --rounds 2

Every stream has a list of 100 phrases of its own, or none; streams with lists stand evenly among the others.
The kinds take turns, round by round, over the same streams in the same process, so that a device that warms
up slows all of them.  The first kind is an engine without memory for phrases; the others are one that has it.
A step's time is that of its stages on the device, by its events.  Each ratio is told with the least and the
most of the rounds: what lies between them is noise.

The decoder takes as long as the row that emits most, and the weights are random: a model with such weights
emits half as many tokens again where phrases replace some, which a trained model does not (docs/phrases.md).
So `--boost` is by default too small to replace a token, and the trees are walked all the same; the report has
the tokens of each kind.

It passes when phrases of 1 % of the streams cost at most 1 % of a step, and those of all at most 5 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.command_line import command_line
from benchmarks.corpora.speech import speech
from benchmarks.engine import ROWS
from benchmarks.trials.engines import LEFT_FRAMES, Switches, build
from benchmarks.trials.phrase_load import PhraseLists, PhraseLoad
from gpu_worker.boosting.spelling import tree_of
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.phrases.tree_memory import NO_TREE
from gpu_worker.engine.slots.arena import Arena
from gpu_worker.engine.steps import UNKNOWN_END, Field
from gpu_worker.model.tokenizer import Tokenizer
from parakeet.bench.report import commit

# What a step may take with phrases, over what it takes without, by the share of the streams that have some.
BOUNDS: Final = {"1 %": 1.01, "all": 1.05}
_SHARES: Final = {"none": 0.0, "1 %": 0.01, "all": 1.0}
_NO_MEMORY: Final = "no memory for phrases"
# Of a first round: kernels are chosen, caches filled.
_WARM_UP_STEPS: Final = 3


@dataclass(frozen=True, slots=True)
class _Tree:
    at: int
    num_nodes: int


class FullSteps:
    """Steps of all streams of an engine at once, without the engine.

    Args:
        engine: fresh; it is not stepped.
        seed: of the audio, which is the same for the same seed.
    """

    def __init__(self, engine: SpeechEngine, seed: int = 0) -> None:
        self._steps, self._chunk_frames = engine.steps, engine.clock.chunk_frames
        pages = self._steps.shape.pages
        self._num_streams = engine.capacity
        rng = np.random.default_rng(seed)
        samples = self._steps.rings.num_samples
        for ring in self._steps.rings.pcm16:
            ring[:] = np.round(32_768 * speech(int(rng.integers(0, 1 << 20)), samples))
        self._table = (
            np.arange(pages.num_pages, dtype=np.int32)[: self._num_streams * pages.ring_pages]
        ).reshape(self._num_streams, pages.ring_pages)
        self._number = 0

    def run(self) -> tuple[float, float, float, float]:
        """Run the next step.

        Returns its milliseconds on the device, those of its decoding, its tokens, and those of the row with
        most tokens.
        """
        rows = np.zeros((len(Field), self._num_streams), dtype=np.int32)
        rows[Field.SLOT], rows[Field.FRAMES] = np.arange(self._num_streams), self._chunk_frames
        rows[Field.START], rows[Field.TOTAL] = self._number * self._chunk_frames, UNKNOWN_END
        self._number += 1
        stats = self._steps.stats
        stages = (stats.pre_encode, stats.encode, stats.decode)
        before_s = [stage.busy_s for stage in stages]
        tokens_B = self._steps.wait(self._steps.launch(rows, self._table)).num_symbols_B
        *others, decode = (
            1000 * (stage.busy_s - before) for stage, before in zip(stages, before_s, strict=True)
        )
        return sum(others) + decode, decode, float(tokens_B.sum()), float(tokens_B.max())

    def fill_contexts(self) -> None:
        """Step until the context of every stream is full."""
        for _ in range(-(-LEFT_FRAMES // self._chunk_frames) + _WARM_UP_STEPS):
            self.run()

    def boost(self, trees: dict[int, _Tree]) -> None:
        """Decode these slots with trees from now on, from their roots, and all others with none."""
        for slot in range(self._num_streams):
            tree = trees.get(slot, _Tree(NO_TREE, 0))
            self._steps.trees.use(slot, tree.at, tree.num_nodes, anew=True)


def put_trees(engine: SpeechEngine, boost: float, seed: int = 0) -> dict[int, _Tree]:
    """Put a tree for every slot, whose phrases have this boost, where the steps read it."""
    vocabulary = engine._vocabulary
    assert isinstance(vocabulary, Tokenizer)
    trees, arena = engine.steps.trees, Arena(engine.steps.trees.num_words)
    lists = PhraseLists(PhraseLoad(1.0), engine.capacity, seed, vocabulary)
    found = {}
    for slot in range(engine.capacity):
        tree = tree_of(vocabulary, tuple(replace(phrase, boost=boost) for phrase in lists.of(slot)))
        at = arena.allocate(len(tree.words))
        if at is None:
            raise SystemExit("the memory for phrases does not hold a list of 100 for every stream")
        trees.put(at, trees.prepare(tree))
        found[slot] = _Tree(at, tree.num_nodes)
    return found


def measure(given: argparse.Namespace) -> dict[str, NDArray[np.float64]]:
    """Return what `FullSteps.run` returns for the steps of every kind, [rounds, steps, 4]."""
    row = ROWS[given.row]
    boosting, plain = (
        build(row, given.streams, given.device, Switches(turn_detection=False, phrase_mb=megabytes)).engine
        for megabytes in (256, 0)
    )
    trees = put_trees(boosting, given.boost)
    with_memory, without = FullSteps(boosting), FullSteps(plain)
    boosted = {
        kind: {slot: trees[slot] for slot in spread(given.streams, share)} for kind, share in _SHARES.items()
    }
    for steps in (with_memory, without):
        steps.fill_contexts()
    found: dict[str, list[list[tuple[float, float, float, float]]]] = {
        kind: [] for kind in (_NO_MEMORY, *_SHARES)
    }
    for _ in range(given.rounds):
        without.run()
        found[_NO_MEMORY].append([without.run() for _ in range(given.steps)])
        for kind in _SHARES:
            with_memory.boost(boosted[kind])
            with_memory.run()
            found[kind].append([with_memory.run() for _ in range(given.steps)])
    return {kind: np.array(times) for kind, times in found.items()}


def spread(num_streams: int, share: float) -> list[int]:
    """Return a share of the slots, evenly among all."""
    count = round(share * num_streams)
    return [number * num_streams // count for number in range(count)]


def _percentile(times: NDArray[np.float64], percent: float) -> float:
    return round(float(np.percentile(times, percent)), 4)


def main() -> int:
    """Command line."""
    parser = command_line(__file__, __doc__)
    parser.add_argument(
        "--row", choices=sorted(ROWS), default="small-160", help="model and chunk length in ms"
    )
    parser.add_argument("--streams", type=int, default=4096, help="streams of a step")
    parser.add_argument("--device", default="cuda:0", help="PyTorch device")
    parser.add_argument("--steps", type=int, default=40, help="steps of each kind in a round")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of all kinds")
    parser.add_argument("--boost", type=float, default=1e-4, help="boost of every phrase")
    parser.add_argument("--must-pass", action="store_true", help="exit with status 1 if it did not pass")
    given = parser.parse_args()
    if given.streams > ROWS[given.row].max_rows:
        parser.error(f"a step of {given.row} has {ROWS[given.row].max_rows} rows at most")
    times = measure(given)
    # The streams of all kinds are the same, so a ratio of one round is one of equal steps.
    rounds = {kind: np.median(found[:, :, 0], axis=1) for kind, found in times.items()}
    of_rounds = {kind: found / rounds["none"] for kind, found in rounds.items()}
    ratios = {kind: float(np.median(found)) for kind, found in of_rounds.items()}
    told = {
        "row": given.row,
        "streams": given.streams,
        "steps_of_each": given.rounds * given.steps,
        "step_p50_ms": {kind: _percentile(found[:, :, 0], 50) for kind, found in times.items()},
        "step_p99_ms": {kind: _percentile(found[:, :, 0], 99) for kind, found in times.items()},
        "decode_p50_ms": {kind: _percentile(found[:, :, 1], 50) for kind, found in times.items()},
        "tokens_a_step": {kind: round(float(found[:, :, 2].mean()), 1) for kind, found in times.items()},
        "most_tokens_of_a_row": {
            kind: round(float(found[:, :, 3].mean()), 2) for kind, found in times.items()
        },
        "to_none": {kind: round(ratio, 4) for kind, ratio in ratios.items()},
        "to_none_of_rounds": {
            kind: [round(float(found.min()), 4), round(float(found.max()), 4)]
            for kind, found in of_rounds.items()
        },
        "passed": all(ratios[kind] <= bound for kind, bound in BOUNDS.items()),
        "device": given.device,
        "commit": commit(),
    }
    print(json.dumps(told), flush=True)
    return 0 if told["passed"] or not given.must_pass else 1


if __name__ == "__main__":
    sys.exit(main())
