"""Clients of OpenAI and Deepgram that send whole recordings."""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import INSTALL_S, Service

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("deepgram-python", "recording"),
        ("deepgram-javascript", "recording"),
        ("openai-python", "recording"),
        ("openai-javascript", "recording"),
        ("livekit", "recording"),
    ],
)
def test_the_text_is_that_of_our_own_protocol(service: Service, where: str, name: str) -> None:
    run = service.run(where, name)
    assert set(run.lines) == {service.native()}
    assert run.conversations


def test_every_format_of_openai(service: Service) -> None:
    run = service.run("openai-python", "formats")
    text = service.native()
    assert run.lines[0] == text
    assert run.text == text
    kinds = [one.response.headers["content-type"] for one in run.conversations[0].exchanges]
    assert kinds == ["text/plain; charset=utf-8"] * 3 + ["application/json"]


def test_text_as_it_is_recognised(service: Service) -> None:
    run = service.run("openai-python", "added")
    assert run.lines == (service.native(),) * 2
    (exchange,) = run.conversations[0].exchanges
    assert exchange.response.body.count(b"transcript.text.delta") > 2


def test_a_shell(service: Service) -> None:
    listened = json.loads(service.run("shell", "listen").text)
    assert listened["results"]["channels"][0]["alternatives"][0]["transcript"] == service.native()
    cues = service.run("shell", "transcriptions").lines
    assert cues[0] == "1"
