"""The engine benchmark on simulated steps: it passes what keeps up and fails what does not."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import engine as command
from benchmarks.trials.churn import churn
from benchmarks.trials.clocks import ThreadClock
from benchmarks.trials.engine_trial import run_trial
from benchmarks.trials.engines import Switches, build_simulated
from benchmarks.trials.phrase_load import PhraseLists, PhraseLoad
from benchmarks.trials.random_model import FRAMES_PER_SECOND, TOKENIZERS, TOKENS_PER_SECOND, blank_bias
from gpu_worker.boosting.spelling import spellings

ROW = command.ROWS["large-80"]


def test_a_device_that_keeps_up_passes() -> None:
    # With chunks so long that no machine is busy enough to make one late.
    built = build_simulated(command.ROWS["large-1120"], 20, fixed_ms=3.0, row_us=1.0)
    result = run_trial(built.engine, 20, 3.0, arrival_s=0.5)
    assert result.finals == 20
    assert result.passed
    assert result.chunks == 20 * 2
    assert result.late_share == 0
    assert result.step_p50_ms >= 3.0
    assert 1.0 < result.tokens_per_second < 6.0


def test_a_device_that_falls_behind_fails() -> None:
    built = build_simulated(ROW, 8, fixed_ms=250.0, row_us=0.0)
    result = run_trial(built.engine, 8, 1.5, arrival_s=0.2)
    assert not result.passed
    assert result.late_share > 0.001
    assert result.wait_p99_ms > ROW.chunk_ms


def test_turns_and_snapshots_are_part_of_a_trial() -> None:
    row = command.ROWS["large-160"]
    built = build_simulated(row, 6, fixed_ms=1.0, row_us=0.0)
    result = run_trial(built.engine, 6, 5.0, arrival_s=0.2, replay_s=4.0)
    assert result.finals == 6
    assert result.snapshots >= 6
    assert result.snapshot_bytes > 0
    assert 0 < result.engine_us_a_chunk < result.host_us_a_chunk
    assert built.engine.stats.turn_detection.units > 0
    without = build_simulated(row, 6, fixed_ms=1.0, row_us=0.0, switches=Switches(turn_detection=False))
    assert run_trial(without.engine, 6, 1.0, arrival_s=0.2).snapshots == 0
    assert without.engine.stats.turn_detection.units == 0


def test_phrases_of_a_trial_are_boosted_and_replaced() -> None:
    load = PhraseLoad(share=1.0, lists_per_second=10.0)
    # With chunks so long that no machine is busy enough to make one late, as above.
    built = build_simulated(command.ROWS["large-1120"], 6, fixed_ms=1.0, row_us=0.0)
    result = run_trial(built.engine, 6, 3.0, arrival_s=0.2, phrases=load)
    assert result.failure == ""
    assert result.finals == 6
    assert result.lists_replaced > 0
    assert built.engine.book.num_lists == 0
    built.engine.check_integrity()


def test_a_stream_that_fails_says_why() -> None:
    # No room for any list.
    built = build_simulated(ROW, 2, fixed_ms=1.0, row_us=0.0, switches=Switches(phrase_mb=0))
    result = run_trial(built.engine, 2, 1.0, arrival_s=0.1, phrases=PhraseLoad(share=1.0))
    assert not result.passed
    assert "--phrase-memory-mb" in result.failure


@pytest.mark.parametrize("row", ["small-160", "large-160", "mini-160"])
def test_a_vocabulary_of_random_pieces_can_write_the_phrases(row: str) -> None:
    vocabulary = TOKENIZERS[command.ROWS[row].model]
    lists = PhraseLists(PhraseLoad(1.0), 2, 0, vocabulary)
    assert lists.of(0) != lists.of(1)
    for spelt in spellings(vocabulary, lists.of(0)):
        assert [len(tokens) for tokens in spelt] == [4]


def test_the_table_shows_what_has_been_recorded(tmp_path: Path) -> None:
    table = command.table(command.recorded(command.RESULTS))
    assert "| small, 160 ms | none | off, off | 12,600 |" in table
    assert "| large, 160 ms | 6 | on, on | 10,000 |" in table
    assert command.recorded(tmp_path / "none.jsonl") == []


def test_search_closes_in_from_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, float]] = []

    def trial(
        row: command.Row, given: Namespace, streams: int, seconds: float, limit_s: float
    ) -> dict[str, object]:
        tried.append((streams, seconds))
        return {"streams": streams, "seconds": seconds, "passed": streams <= 2_100}

    monkeypatch.setattr(command, "trial", trial)
    results = tmp_path / "trials.jsonl"
    told = {"row": ROW.name, "streams": 1_000, "seconds": 20.0, "passed": True}
    told |= {"snapshot_of": "audio", "pace_ms": 20.0}
    results.write_text(json.dumps(told) + "\n")
    given = Namespace(
        results=results, trials=8, start=0, search_s=20.0, final_s=120.0, budget_s=None,
        turn_detection=False, replay_seconds=0.0, snapshots="audio", pace_ms=20.0, boosted=0.0,
        phrase_lists=0.0, lanes=1,
    )  # fmt: skip
    assert command.search_row(ROW, given) == 0
    loads = [streams for streams, seconds in tried if seconds == 20.0]
    assert loads[:2] == [1_250, 1_562]
    assert tried[-1][1] == 120.0
    assert 1_950 <= tried[-1][0] <= 2_100


def test_table_shows_the_best_long_trial_alone(tmp_path: Path) -> None:
    built = build_simulated(ROW, 4, fixed_ms=1.0, row_us=0.0)
    result = run_trial(built.engine, 4, 0.3, arrival_s=0.1).as_dict()
    extra = {"row": ROW.name, "start_up_s": 3.0, "stream_bytes": 5, "device": "G", "commit": "c"}
    told = {**result, **extra, "passed": True}
    rows = [
        {**told, "seconds": 120.0, "streams": 1_234},
        {**told, "seconds": 120.0, "streams": 1_111},
        {**told, "seconds": 20.0, "streams": 9_999},
        {**told, "seconds": 120.0, "streams": 8_888, "passed": False},
    ]
    table = command.table(rows)
    assert "1,234" in table
    assert not any(number in table for number in ("1,111", "9,999", "8,888"))


def test_a_trial_is_found_again_by_its_switches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine", "--simulate", "--row", "large-160"])
    given = command._parser().parse_args()
    given.streams, given.seconds = 4, 1.0
    told = command.one_trial(ROW, given)
    assert told["snapshot_of"] == "audio"
    assert command._is_of(told, given)
    given.snapshots = "state"
    assert not command._is_of(told, given)


def test_churn_counts_every_stream() -> None:
    time_of = ThreadClock()
    built = build_simulated(ROW, 12, fixed_ms=0.5, row_us=0.0, time_of=time_of)
    told = churn(built.engine, 2.0, on_cuda=False, time_of=time_of)
    assert told["finals"] + told["dropped"] == told["streams"] > 24
    assert told["dropped"] > 0


def test_blank_bias_gives_the_rate_of_speech() -> None:
    torch.manual_seed(1)
    weights = {
        "joint.pred.bias": torch.zeros(24),
        "joint.joint_net.2.weight": torch.randn(50, 24),
        "joint.joint_net.2.bias": torch.zeros(50),
    }
    frames = 1 + 0.1 * torch.randn(20_000, 24)
    bias = blank_bias(frames, weights, blank_id=49, max_symbols=2)
    logits = torch.relu(frames) @ weights["joint.joint_net.2.weight"].t()
    logits[:, 49] += bias
    emitting = float((logits.argmax(1) != 49).float().mean())
    assert 2 * emitting * FRAMES_PER_SECOND == pytest.approx(TOKENS_PER_SECOND, rel=0.02)
