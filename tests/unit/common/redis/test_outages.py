"""What is logged of a Redis that does not answer."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from common.redis import outages
from common.redis.address import RedisAddress
from common.redis.connect import lost
from common.redis.outages import Outages

_A = RedisAddress(host="a", port=7000)
_B = RedisAddress(host="b", port=7000)
_ERROR = ConnectionError("Redis at a:7000 does not answer: Connection refused.")


def _told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_an_outage_has_one_line_at_its_start_one_at_its_end_and_few_between(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=lambda: now))
    known = Outages()
    for _ in range(155):  # 31 s, five times a second
        known.failed(_A, _ERROR)
        now += 0.2
    assert [level for level, _ in _told(caplog)] == ["WARNING"] * 4
    first, second = (said for _, said in _told(caplog)[:2])
    assert first == "Redis at a:7000 does not answer: Connection refused. It is asked again."
    assert second == f"{first} It has not answered for 10 s."
    caplog.clear()
    known.answered(_A)
    known.answered(_A)
    assert _told(caplog) == [("INFO", f"Redis at {_A} answers again after 31.0 s")]


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionRefusedError(111, "Connection refused")])
def test_one_search_of_the_log_finds_every_outage(error: OSError) -> None:
    assert str(lost(_A, error)).startswith("Redis at a:7000/0 does not answer")


def test_servers_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    known = Outages()
    known.failed(_A, _ERROR)
    known.failed(_B, ConnectionError("Redis at b:7000 does not answer: Connection refused."))
    assert len(caplog.records) == 2
    known.answered(_A)
    assert known.any
    known.answered(_B)
    assert not known.any


def test_what_fails_for_an_outage_is_no_warning_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    known, log = Outages(), logging.getLogger("somebody")
    known.log_retry(log, "the sweep failed: %s", "OOM")
    known.failed(_A, _ERROR)
    known.log_retry(log, "the sweep failed: %s", _ERROR)
    assert [record.levelname for record in caplog.records if record.name == "somebody"] == [
        "WARNING",
        "DEBUG",
    ]
