"""The error tree."""

from __future__ import annotations

import pytest

from common.errors import (
    ERROR_SPECS,
    ClientFault,
    ErrorCode,
    Fault,
    NoFreeStream,
    NoWorker,
    ParakeetError,
    RedisUnavailable,
    Retry,
    StreamError,
    StreamLost,
    retry_of,
)


def test_every_code_has_its_promise() -> None:
    assert set(ERROR_SPECS) == set(ErrorCode)
    assert all(spec.meaning.endswith(".") for spec in ERROR_SPECS.values())


def test_a_client_may_try_again_where_it_is_not_at_fault() -> None:
    """Nor where it only read too slowly, as after a laptop's sleep: its stream waits."""
    again = {code for code, spec in ERROR_SPECS.items() if spec.retry is not Retry.NO}
    services = {code for code, spec in ERROR_SPECS.items() if spec.fault is Fault.SERVICE}
    assert again == services | {ErrorCode.SLOW_READER}
    assert all(ERROR_SPECS[code].closes for code in again)
    assert retry_of("of_a_newer_server") is Retry.NO


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
