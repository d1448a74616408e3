"""The plan of GPU measurements: what is done is skipped, what fails or hangs costs only itself."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.engine import UNFINISHED, read_results
from benchmarks.gpu_plan import Ledger, Stage, rehearsal, run_all, stages
from benchmarks.trials.capacity import Budget, OutOfTime, Trial, search


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def outcomes(path: Path) -> dict[str, str]:
    return {told["stage"]: told["outcome"] for told in read_results(path)}


def test_a_stage_that_fails_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "stages.jsonl"
    made = [
        Stage("fails", python("print('why'); raise SystemExit(1)"), 1, 30),
        Stage("hangs", python("import time; print('begun', flush=True); time.sleep(600)"), 0.2, 1),
        Stage("stops", python(f"raise SystemExit({UNFINISHED})"), 1, 30),
        Stage("works", python("print('{\"figure\": 7}')"), 1, 30),
        Stage("too long", python("raise AssertionError"), 1000, 1000),
    ]
    left = run_all(made, Ledger(path), Budget.of(60), gpus=1)
    assert left == ["too long"]
    assert outcomes(path) == {"fails": "failed", "hangs": "stopped", "stops": "unfinished", "works": "done"}
    told = {row["stage"]: row for row in read_results(path)}
    assert told["fails"]["printed"].strip() == "why"
    assert told["works"]["result"] == {"figure": 7}
    again = Ledger(path)
    assert again.outcome("works") == "done"
    assert again.outcome("too long") is None


def test_two_gpus_run_side_by_side_and_stages_of_the_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "stages.jsonl"
    # Each waits for the other's file: only side by side do both end.
    meet = (
        "import os, pathlib, sys, time\n"
        "mine = os.environ['CUDA_VISIBLE_DEVICES']; folder = pathlib.Path(sys.argv[1])\n"
        "(folder / mine).touch(); deadline = time.monotonic() + 30\n"
        "while not (folder / str(1 - int(mine))).exists():\n"
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.01)\n"
    )
    made = [
        Stage("one", (*python(meet), str(tmp_path)), 1, 40),
        Stage("two", (*python(meet), str(tmp_path)), 1, 40),
        Stage(
            "host", python("import os; assert 'CUDA_VISIBLE_DEVICES' not in os.environ"), 1, 30, alone=True
        ),
    ]
    assert run_all(made, Ledger(path), Budget.of(90), gpus=2) == []
    assert set(outcomes(path).values()) == {"done"}
    assert list(outcomes(path))[-1] == "host"


def test_a_stage_waits_for_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "stages.jsonl"
    made = [
        Stage("reads", python("pass"), 1, 30, after=("writes",)),
        Stage("writes", python("pass"), 1, 30),
        Stage("orphan", python("pass"), 1, 30, after=("fails",)),
        Stage("fails", python("raise SystemExit(1)"), 1, 30),
    ]
    assert run_all(made, Ledger(path), Budget.of(60), gpus=1) == ["orphan"]
    assert list(outcomes(path)) == ["writes", "reads", "fails"]


class UnderstoodError(Exception):
    """A command line was understood."""


def test_every_stage_says_what_its_command_understands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> Namespace:
        parse(parser, argv)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    understood = set()
    for stage in [*stages(tmp_path, churn_minutes=8), *rehearsal(tmp_path)]:
        _, dash_m, module, *argv = (part.replace("{left}", "60") for part in stage.command)
        if dash_m == "-m" and module.startswith("benchmarks."):
            monkeypatch.setattr(sys, "argv", [module, *argv])
            with pytest.raises(UnderstoodError):
                importlib.import_module(module).main()
            understood.add(module.removeprefix("benchmarks."))
    assert understood == {"engine", "file_rate", "nemo_step", "phrase_steps", "service_level"}


def test_what_reads_a_stage_that_failed_is_left_alone(tmp_path: Path) -> None:
    path, kept = tmp_path / "stages.jsonl", tmp_path / "kept"
    made = [
        Stage("first", python("raise SystemExit(1)"), 1, 30),
        Stage("second", python("pass"), 1, 30, after=("first",)),
    ]
    assert run_all(made, Ledger(path, kept), Budget.of(60), gpus=1) == ["second"]
    assert (kept / "stages.jsonl").read_text() == path.read_text()
    # The next call has the first one behind it.
    assert run_all(made[1:], Ledger(path), Budget.of(60), gpus=1) == ["second"]


def test_every_stage_fits_into_one_command(tmp_path: Path) -> None:
    for made in (stages(tmp_path, churn_minutes=8), rehearsal(tmp_path)):
        names = [stage.name for stage in made]
        assert len(set(names)) == len(names)
        for stage in made:
            assert stage.need_s <= 540, stage.name
            assert set(stage.after) <= set(names)


def test_search_goes_on_after_its_time_ran_out() -> None:
    recorded: list[Trial] = []

    def run(streams: int, seconds: float) -> bool:
        if len(recorded) % 3 == 2:
            recorded.append(Trial(1, 1.0, passed=True))
            raise OutOfTime
        recorded.append(Trial(streams, seconds, streams <= 130))
        return recorded[-1].passed

    def go() -> int:
        return search(run, list(recorded), least=50, start=100, trials=9, search_s=20, final_s=120)

    found = 0
    for _ in range(5):
        try:
            found = go()
            break
        except OutOfTime:
            continue
    loads = [trial.streams for trial in recorded if trial.seconds == 20]
    assert loads[0] == 100
    assert len(set(loads)) == len(loads)
    assert 98 <= found <= 130
    assert [trial for trial in recorded if trial.seconds == 120][-1] == Trial(found, 120, passed=True)
    # All is known by now: nothing is run again.
    assert (
        search(lambda *_: pytest.fail("ran"), recorded, least=50, trials=0, search_s=20, final_s=120) == found
    )


def test_a_load_may_be_proved_at_once() -> None:
    tried: list[tuple[int, float]] = []

    def run(streams: int, seconds: float) -> bool:
        tried.append((streams, seconds))
        return streams < 1000

    assert search(run, [], least=50, start=1000, trials=0, search_s=20, final_s=120) == 900
    assert tried == [(1000, 120), (900, 120)]


def test_the_ledger_is_plain_lines(tmp_path: Path) -> None:
    path = tmp_path / "stages.jsonl"
    Ledger(path).add({"stage": "a", "outcome": "done", "seconds": 1.0, "printed": ""})
    assert json.loads(path.read_text()) == {"stage": "a", "outcome": "done", "seconds": 1.0, "printed": ""}
