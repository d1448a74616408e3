"""What `check` makes of what it measured."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from common.errors import ServiceError
from common.settings import SettingsError, parse, serve_argv
from parakeet.check import command
from parakeet.check.clips import clip, clips
from parakeet.check.command import WorkerFacts, run_check
from parakeet.check.trial import Reading
from parakeet.check.verdict import Figure, judged, percentile, word_error_bound

GOOD = Reading(clip("goforward.wav"), 2.79, "go forward ten meters", 0, 4, (0.05, 0.1), 0.2)
LINE = (
    "2026-01-31T12:00:00.000Z INFO gpu_worker.worker [worker_id=w-1] worker ready with 100 slots,"
    " --max-num-streams 100, carries {}, model /a b/tiny@0123, device cuda:0, dtype bfloat16, chunk_ms 160"
)


def figures(reading: Reading = GOOD, **changes: Any) -> dict[str, bool]:
    given: dict[str, Any] = {"most_errors": 1, "real_time_factor": 0.1, "chunk_ms": 160, "num_streams": 50}
    return {one.name: one.passed for one in judged([reading], **(given | changes))}


def test_every_bundled_recording_has_a_transcript() -> None:
    assert len(clips()) == 4
    for one in clips():
        assert one.text
        assert one.path.is_file()


def test_all_that_is_within_its_bound_is_good() -> None:
    assert set(figures().values()) == {True}
    assert len(figures()) == 6
    assert "streams in real time" not in figures(num_streams=None)


@pytest.mark.parametrize(
    ("name", "reading", "changes"),
    [
        ("word errors", replace(GOOD, errors=2), {}),
        ("latency of results, p95", replace(GOOD, latency_s=(0.05, *[0.5] * 5)), {}),
        ("latency of results, p50", replace(GOOD, latency_s=()), {}),
        ("latency of the final result, worst", replace(GOOD, final_s=1.2), {}),
        ("time for a second of audio", GOOD, {"real_time_factor": 0.6}),
        ("streams in real time", GOOD, {"num_streams": 0}),
    ],
)
def test_what_is_beyond_its_bound_fails(name: str, reading: Reading, changes: dict[str, Any]) -> None:
    assert figures(reading, **changes)[name] is False


def test_bounds_go_by_the_model() -> None:
    assert word_error_bound("tiny", "", 160, 56) == 25
    assert word_error_bound("tiny", "owner/name", 160, 56) == 8
    assert word_error_bound("large", "", 1120, 56) == 8


def test_percentiles() -> None:
    assert percentile([1.0], 95) == 1.0
    assert percentile([float(number) for number in range(101)], 95) == 95.0


@pytest.mark.parametrize(
    ("words", "streams"),
    [
        ("at least 800 streams in real time (100 at once took 2.1 ms)", 800),
        ("12 streams in real time (4 at once took 20.0 ms)", 12),
        ("what was not measured", None),
    ],
)
def test_the_workers_line_is_read(words: str, streams: int | None) -> None:
    facts = WorkerFacts.read(LINE.format(words))
    assert facts == WorkerFacts("/a b/tiny@0123", "cuda:0", "bfloat16", 160, streams)
    with pytest.raises(ServiceError):
        WorkerFacts.read("worker ready")


class _Stack:
    """Is ready at once."""

    flags: ClassVar[list[str]] = []

    def __init__(self, flags: list[str], start_timeout_s: float) -> None:
        _Stack.flags = flags
        self.worker_line = LINE.format("12 streams in real time (4 at once took 20.0 ms)")
        self.ws_port = 1

    def wait_until_ready(self) -> str:
        return "ready"


class _Running:
    def __init__(self, stack: _Stack) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("errors", "status"), [(0, 0), (4, 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_status_follows(
    errors: int,
    status: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def measured(url: str) -> tuple[list[Reading], float]:
        return [replace(GOOD, errors=errors)], 0.1

    monkeypatch.setattr(command, "LocalStack", _Stack)
    monkeypatch.setattr(command, "running", _Running)
    monkeypatch.setattr(command, "_measured", measured)
    settings = parse(
        "check", ["--model-size", "large", "--device", "cuda", *(["--json"] if as_json else [])], {}
    )
    assert run_check(settings) == status
    assert "--model-size=large" in _Stack.flags
    assert not any(flag.startswith("--json") for flag in _Stack.flags)
    shown = capsys.readouterr().out
    if as_json:
        told = json.loads(shown)
        assert told["passed"] is (status == 0)
        assert told["recordings"][0]["errors"] == errors
        assert (told["model"], told["chunk_ms"]) == ("/a b/tiny@0123", 160)
    else:
        assert shown.splitlines()[-1] == ("check passed" if status == 0 else "check FAILED")
        assert "read    go forward ten meters" in shown


def test_a_back_end_that_reads_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="nothing to check"):
        run_check(parse("check", ["--backend", "null"], {}))


def test_a_stack_takes_all_that_check_was_told() -> None:
    argv = serve_argv(parse("check", ["--model-size", "tiny", "--chunk-ms", "80", "--num-threads", "2"], {}))
    served = parse("serve", argv, {}).worker
    assert (served.model_size, served.chunk_ms, served.num_threads) == ("tiny", 80, 2)
    assert served.measure_capacity_s == 5


def test_a_figure_knows_its_direction() -> None:
    assert Figure("a", 1, 1).passed
    assert not Figure("a", 2, 1).passed
    assert not Figure("a", 0, 1, at_most=False).passed
