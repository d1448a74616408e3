"""smart-turn: features equal to the reference's, and a pool that is bounded and never blocks."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from common.entries import StreamId
from gpu_worker.turn.outcome import Verdict
from gpu_worker.turn.smart_turn import INPUT_SAMPLES, SmartTurn, log_mel
from gpu_worker.turn.smart_turn_pool import SmartTurnPool
from gpu_worker.turn.stage import TurnAnswer
from tests.waiting import wait_until

GOLDEN: dict[str, NDArray[Any]] = load_file(
    Path(__file__).parents[3] / "golden" / "turn" / "smart_turn.safetensors"
)
RECORDINGS = sorted({name.rpartition(".")[0] for name in GOLDEN})
TIMEOUT_S = 20.0


def test_there_are_recordings_on_both_sides() -> None:
    probabilities = [GOLDEN[f"{name}.probability"].item() for name in RECORDINGS]
    assert min(probabilities) < 0.3 < 0.7 < max(probabilities)


@pytest.mark.parametrize("name", RECORDINGS)
def test_log_mel_equals_the_reference(name: str) -> None:
    samples = (GOLDEN[f"{name}.samples"] / np.float32(32_768)).astype(np.float32)
    np.testing.assert_allclose(log_mel(samples)[:, ::10], GOLDEN[f"{name}.log_mel"], rtol=0, atol=1e-5)


def test_log_mel_of_nothing_is_finite() -> None:
    for samples in (np.zeros(0, np.float32), np.zeros(2 * INPUT_SAMPLES, np.float32)):
        features = log_mel(samples)
        assert features.shape == (80, 800)
        assert np.isfinite(features).all()


@pytest.mark.parametrize("name", RECORDINGS)
def test_probability_is_on_the_references_side(name: str) -> None:
    # Nearer cannot be asked for: the network is quantized to 8 bits, and onnxruntime computes it differently
    # by version and by processor (0.68 to 0.94 seen for one of these).
    expected = GOLDEN[f"{name}.probability"].item()
    probability = SmartTurn().probability(GOLDEN[f"{name}.samples"])
    assert (probability > 0.5) == (expected > 0.5)
    assert probability == pytest.approx(expected, abs=0.3)


class GatedModel:
    """Says how loud the audio's last sample is, when the test opens the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def probability(self, audio: NDArray[np.int16]) -> float:
        self.entered.release()
        assert self.gate.wait(TIMEOUT_S)
        if audio[-1] < 0:
            raise RuntimeError("cannot judge this")
        return float(audio[-1]) / 100


def audio(value: int) -> NDArray[np.int16]:
    return np.full(16, value, np.int16)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., tuple[SmartTurnPool, GatedModel]]]:
    pools: list[SmartTurnPool] = []
    models: list[GatedModel] = []

    def make(**arguments: float) -> tuple[SmartTurnPool, GatedModel]:
        model = GatedModel()
        pool = SmartTurnPool(model, **arguments)  # type: ignore[arg-type]
        pools.append(pool)
        models.append(model)
        return pool, model

    yield make
    for pool, model in zip(pools, models, strict=True):
        model.gate.set()
        pool.close(TIMEOUT_S)


def collect(pool: SmartTurnPool, count: int) -> list[TurnAnswer]:
    """Takes so many answers; it is woken for each, as the engine's thread is."""
    answers: list[TurnAnswer] = []
    woken = threading.Event()
    pool.wake_with(woken.set)
    answers += pool.answers()
    while len(answers) < count:
        assert woken.wait(TIMEOUT_S), "no answer came"
        woken.clear()
        answers += pool.answers()
    return answers


def test_answers_come_by_threshold_and_are_counted(
    make_pool: Callable[..., tuple[SmartTurnPool, GatedModel]],
) -> None:
    pool, model = make_pool(threshold=0.6, num_threads=2)
    assert pool.ask(StreamId(1), 7, audio(60))
    assert pool.ask(StreamId(2), 1, audio(59))
    assert pool.ask(StreamId(3), 1, audio(-1))
    assert pool.answers() == ()
    assert pool.stats.depth == 3
    model.gate.set()
    got = {(answer.stream, answer.number): answer.verdict for answer in collect(pool, 3)}
    assert got == {(1, 7): Verdict.COMPLETE, (2, 1): Verdict.INCOMPLETE, (3, 1): Verdict.ABSENT}
    stats = pool.stats
    assert (stats.asked, stats.complete, stats.incomplete, stats.failed) == (3, 1, 1, 1)
    assert (stats.refused, stats.late, stats.depth) == (0, 0, 0)
    assert stats.busy_s > 0


def test_the_queue_is_bounded_and_a_stream_has_one_place(
    make_pool: Callable[..., tuple[SmartTurnPool, GatedModel]],
) -> None:
    pool, model = make_pool(num_threads=1, max_queued=2)
    assert pool.ask(StreamId(1), 1, audio(0))
    assert model.entered.acquire(timeout=TIMEOUT_S)  # the thread is at it: the queue is empty again
    assert pool.ask(StreamId(2), 1, audio(0))
    assert pool.ask(StreamId(3), 1, audio(0))
    assert not pool.ask(StreamId(4), 1, audio(0))
    assert pool.ask(StreamId(3), 2, audio(99))  # takes the place of the stream's older question
    pool.drop(StreamId(2))
    assert pool.stats.depth == 2
    model.gate.set()
    answers = collect(pool, 2)
    assert answers == [
        TurnAnswer(StreamId(1), 1, Verdict.INCOMPLETE),
        TurnAnswer(StreamId(3), 2, Verdict.COMPLETE),
    ]
    assert pool.stats.refused == 1


def test_a_stream_that_begins_anew_hears_no_answer_to_its_former_questions(
    make_pool: Callable[..., tuple[SmartTurnPool, GatedModel]],
) -> None:
    pool, model = make_pool(num_threads=1)
    assert pool.ask(StreamId(1), 1, audio(99))
    assert model.entered.acquire(timeout=TIMEOUT_S)  # it is being judged
    pool.drop(StreamId(1))
    assert pool.ask(StreamId(1), 1, audio(0))
    model.gate.set()
    assert collect(pool, 1) == [TurnAnswer(StreamId(1), 1, Verdict.INCOMPLETE)]
    assert pool.ask(StreamId(1), 2, audio(99))
    wait_until(lambda: pool.stats.complete == 2)  # judged, and its answer not fetched
    pool.drop(StreamId(1))
    assert pool.answers() == ()


def test_a_question_keeps_its_audio_when_the_caller_goes_on(
    make_pool: Callable[..., tuple[SmartTurnPool, GatedModel]],
) -> None:
    pool, model = make_pool()
    samples = audio(90)
    pool.ask(StreamId(1), 1, samples)
    samples[:] = 0
    model.gate.set()
    assert collect(pool, 1)[0].verdict is Verdict.COMPLETE
