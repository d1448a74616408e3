"""The error tree."""

from __future__ import annotations

import pytest

from common.errors import (
    ERROR_SPECS,
    ClientFault,
    ErrorCode,
    NoFreeStream,
    NoWorker,
    ParakeetError,
    RedisUnavailable,
    StreamError,
    StreamLost,
)


def test_every_code_has_its_promise() -> None:
    assert set(ERROR_SPECS) == set(ErrorCode)
    assert all(spec.meaning.endswith(".") for spec in ERROR_SPECS.values())


def test_the_sentence_for_a_full_cluster_is_as_documented() -> None:
    assert NoFreeStream().message == "No free streaming state available."


@pytest.mark.parametrize("error", [NoFreeStream(), NoWorker(), RedisUnavailable(), StreamLost()])
def test_full_cluster_missing_worker_and_dead_redis_have_codes_of_their_own(error: StreamError) -> None:
    codes: dict[type[StreamError], str] = {
        NoFreeStream: "no_free_stream",
        NoWorker: "no_worker",
        RedisUnavailable: "redis_unavailable",
        StreamLost: "stream_lost",
    }
    assert error.code == codes[type(error)]
    assert error.closes
    assert isinstance(error, ParakeetError)


def test_only_harmless_faults_leave_the_connection_open() -> None:
    going_on = {code for code, spec in ERROR_SPECS.items() if not spec.closes}
    assert going_on == {ErrorCode.UNKNOWN_TYPE, ErrorCode.AUDIO_AFTER_FINAL}
    assert not ClientFault(ErrorCode.UNKNOWN_TYPE, "What is that?").closes
