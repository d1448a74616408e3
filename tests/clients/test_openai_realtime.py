"""Clients of OpenAI's realtime protocol."""

from __future__ import annotations

import pytest

from tests.clients.conftest import INSTALL_S, Run, Service
from tests.clients.conversation import Conversation
from tests.clients.reference import Sent

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]

_RATE = 24_000


def spoken(run: Run) -> Conversation:
    """Return the one connection of a client: nobody had to connect again."""
    (conversation,) = run.conversations
    assert conversation.path == "/v1/realtime"
    return conversation


def check_text(service: Service, run: Run) -> None:
    """The text is that of our own protocol for the same samples, finalized at the same places."""
    assert run.text == service.native(Sent(spoken(run).pieces(), _RATE))


def check_deltas(run: Run, word: str = "delta") -> None:
    """Text came before the end of the audio: to the client, and on the wire."""
    assert any(line.startswith(word) for line in run.lines), run.lines
    conversation = spoken(run)
    deltas = [frame for frame in conversation.from_server if b"transcription.delta" in frame.payload]
    assert deltas[0].at_s < conversation.audio_ended_s()


def test_the_python_sdk(service: Service) -> None:
    run = service.run("openai-python", "realtime")
    check_text(service, run)
    check_deltas(run)
    assert spoken(run).close_code == 1000


def test_a_commit_of_the_python_sdk(service: Service) -> None:
    run = service.run("openai-python", "commit")
    check_text(service, run)
    assert len(spoken(run).pieces()) == 3
    assert spoken(run).close_code == 1000


def test_the_javascript_sdk(service: Service) -> None:
    run = service.run("openai-javascript", "realtime", tls=True)
    check_text(service, run)
    check_deltas(run)
    assert spoken(run).close_code == 1000


def test_pipecat(service: Service) -> None:
    run = service.run("pipecat", "realtime")
    check_text(service, run)
    check_deltas(run)
    assert spoken(run).close_code == 1000


def test_livekit(service: Service) -> None:
    run = service.run("livekit", "realtime")
    check_text(service, run)
    check_deltas(run, "interim_transcript")
    assert spoken(run).close_code == 1000
