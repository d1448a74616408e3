"""Clients of our own protocol: a few lines of one's own, and the libraries of this repository."""

from __future__ import annotations

import pytest

from tests.clients.conftest import INSTALL_S, Service

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
