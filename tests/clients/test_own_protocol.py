"""Clients of our own protocol: a few lines of one's own, and the libraries of this repository."""

from __future__ import annotations

import pytest

from common.messages import Encoding
from tests.clients.conftest import INSTALL_S, Service
from tests.clients.reference import Sent

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]


def test_a_few_lines_over_tcp(service: Service) -> None:
    run = service.run("plain", "tcp")
    assert run.text == service.native()
    assert len(run.lines) > 2


@pytest.mark.parametrize(
    ("where", "name"),
    [("plain", "websocket"), ("parakeet-python", "stream"), ("parakeet-typescript", "stream")],
)
def test_over_a_websocket(service: Service, where: str, name: str) -> None:
    run = service.run(where, name)
    assert run.text == service.native()
    assert len(run.lines) > 2
    (conversation,) = run.conversations
    assert conversation.close_code == 1000


@pytest.mark.parametrize(
    ("where", "name", "encoding"),
    [("parakeet-python", "finalize", Encoding.PCM16), ("parakeet-typescript", "finalize", Encoding.F32)],
)
def test_the_text_in_the_middle(service: Service, where: str, name: str, encoding: Encoding) -> None:
    run = service.run(where, name)
    (conversation,) = run.conversations
    pieces = conversation.pieces()
    assert len(pieces) == 2
    assert run.lines[0] == service.native(Sent(pieces[:1], 16_000, encoding))
    assert run.text == service.native(Sent(pieces, 16_000, encoding))
    assert run.text.startswith(run.lines[0])
    assert conversation.close_code == 1000
