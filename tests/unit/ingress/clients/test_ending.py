"""What the log has of an error that a client is told."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord
from common.entries import StreamId
from common.errors import ClientFault, ErrorCode
from common.monitoring.metrics import IngressMetrics
from ingress.auth.client import ANYBODY, Client
from ingress.clients.ending import Ending
from ingress.meter import Meter

_DESK = Client(KeyRecord(key_id=KeyId("k1"), digest="", name="desk"))


@pytest.mark.parametrize(("client", "name"), [(_DESK, "desk"), (ANYBODY, None), (None, None)])
def test_an_error_is_logged_with_the_name_of_the_key(
    client: Client | None, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sent: list[Any] = []
    ending = Ending(
        SimpleNamespace(),
        SimpleNamespace(),
        SimpleNamespace(client=client),  # type: ignore[arg-type]
        SimpleNamespace(send=sent.append),  # type: ignore[arg-type]
        Meter(IngressMetrics(), "tcp"),
        lambda: None,
    )
    ending.tell(ClientFault(ErrorCode.BAD_OPTION, "No such value."), StreamId(7))
    (record,) = caplog.records
    assert record.getMessage() == f"bad_option: No such value. (key {name or '-'})"
    assert (record.stream_id, record.code, getattr(record, "key_name", None)) == (7, "bad_option", name)  # type: ignore[attr-defined]
    assert [message.code for message in sent] == ["bad_option"]
