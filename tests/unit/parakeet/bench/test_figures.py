"""Percentiles, the service level, the search, and which process is which."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from parakeet.bench.figures import Percentiles, TrialFigures, verdict
from parakeet.bench.search import PROOF_TRIAL_S, search
from parakeet.bench.server.processes import redis_urls, role_of

NOTHING = Percentiles.of(())


def judge(latencies: list[float], changes: dict[str, object] | None = None) -> tuple[str, ...]:
    given: dict[str, object] = {
        "chunk_ms": 160,
        "latencies": array("f", latencies),
        "finals": Percentiles.of([0.02]),
        "late": sum(1 for latency in latencies if latency > 0.16),
        "errors": {},
        "finished": 1,
        "expected": 1,
        "sent": 1000,
        "lagging": 1,
    }
    return verdict(**{**given, **(changes or {})})  # type: ignore[arg-type]


def test_percentiles_by_nearest_rank() -> None:
    found = Percentiles.of([i / 1000 for i in range(1, 101)])
    assert (found.count, found.p50_ms, found.p99_ms, found.max_ms) == (100, 51.0, 100.0, 100.0)
    assert NOTHING.count == 0


def test_one_late_chunk_in_a_thousand_passes_and_two_do_not() -> None:
    assert judge([0.01] * 999 + [0.2]) == ()
    assert judge([0.01] * 998 + [0.2] * 2) == ("late chunks 0.20 %",)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"finals": Percentiles.of([1.2])}, "final"),
        ({"errors": {"closed": 1}}, "closed 1"),
        ({"finished": 0}, "without a final"),
        ({"lagging": 2}, "load generator"),
    ],
)
def test_each_limit_fails_a_trial(changes: dict[str, object], word: str) -> None:
    (failure,) = judge([0.01], changes)
    assert word in failure


def test_a_backlog_of_more_than_three_seconds_fails() -> None:
    assert any("backlog" in failure for failure in judge([0.01] * 5000 + [3.1]))


def figures(streams: int, *, passed: bool) -> TrialFigures:
    return TrialFigures(
        streams, 160, 160, 20.0, 15.0, (), "null", 0, 0, streams, streams,
        NOTHING, NOTHING, NOTHING, 0, 0, {}, 0.0, (), None, () if passed else ("late",),
    )  # fmt: skip


@pytest.mark.parametrize("limit", [1, 7, 100, 137, 1600])
def test_search_finds_the_limit_within_its_resolution(limit: int) -> None:
    result = search(lambda n, _: figures(n, passed=n <= limit), first=100, most=10_000)
    assert 0.94 * limit <= result.streams <= limit
    assert result.trials[-1].passed


def test_search_goes_down_when_the_long_trial_fails() -> None:
    result = search(
        lambda n, duration_s: figures(n, passed=n <= (900 if duration_s == PROOF_TRIAL_S else 1000)),
        first=500,
        most=4000,
    )
    assert 850 <= result.streams <= 900


def test_search_gives_zero_when_nothing_passes() -> None:
    assert search(lambda n, _: figures(n, passed=False), first=8, most=100).streams == 0


def test_search_keeps_to_its_bound() -> None:
    result = search(lambda n, _: figures(n, passed=True), first=100, most=300)
    assert result.streams == 300
    assert max(trial.streams for trial in result.trials) == 300


def test_a_failed_trial_is_not_passed() -> None:
    assert not replace(figures(1, passed=True), failures=("x",)).passed


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/usr/bin/python3 -m ingress --port 1", "ingress"),
        ("python -m gpu_worker --model-size tiny", "worker"),
        ("/usr/bin/redis-server 127.0.0.1:6379", "redis"),
        ("/x/_bin/valkey-server --port 0", "redis"),
        ("python /venv/bin/parakeet-server serve --backend null", "serve"),
        ("python -m parakeet.bench ws://h:1", None),
        ("vim redis-server.conf", None),
        ("", None),
    ],
)
def test_role_of_a_command_line(command: str, role: str | None) -> None:
    assert role_of(tuple(command.split())) == role


def test_a_server_that_shows_its_socket_is_known() -> None:
    assert role_of(("/x/valkey-server unixsocket:/tmp/y/redis.sock", "", "")) == "redis"


def test_redis_addresses_by_flag_before_environment() -> None:
    environ = {"PARAKEET_REDIS_URL": "redis://a:1,redis://b:2"}
    assert redis_urls(("x",), environ) == ("redis://a:1", "redis://b:2")
    assert redis_urls(("x", "--redis-url", "redis://c:3"), environ) == ("redis://c:3",)
    assert redis_urls(("x", "--redis-url=unix:///s"), {}) == ("unix:///s",)
