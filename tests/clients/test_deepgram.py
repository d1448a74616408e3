"""Clients of Deepgram's live protocol."""

from __future__ import annotations

import pytest

from tests.clients.conftest import INSTALL_S, Run, Service
from tests.clients.conversation import Conversation
from tests.clients.reference import Sent

pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S)]

_RATE = 16_000


def listened(run: Run) -> Conversation:
    """Return the one connection of a client: nobody had to connect again."""
    (conversation,) = run.conversations
    assert conversation.path == "/v1/listen"
    return conversation


def check_text(service: Service, run: Run) -> None:
    """The text is that of our own protocol for the same samples, finalized at the same places."""
    assert run.text == service.native(Sent(listened(run).pieces(), _RATE))


def check_interims(run: Run, word: str = "interim") -> None:
    """Text came before the end of the audio: to the client, and on the wire."""
    assert any(line.startswith(word) and line.removeprefix(word).strip() for line in run.lines), run.lines
    conversation = listened(run)
    texts = [frame for frame in conversation.from_server if b'"is_final":false' in frame.payload]
    assert texts[0].at_s < conversation.audio_ended_s()


@pytest.mark.parametrize(("where", "name"), [("deepgram-python", "live"), ("deepgram-javascript", "live")])
def test_an_sdk_live(service: Service, where: str, name: str) -> None:
    run = service.run(where, name)
    check_text(service, run)
    check_interims(run)
    assert listened(run).close_code == 1000


def test_a_finalize_of_an_sdk(service: Service) -> None:
    run = service.run("deepgram-python", "finalize")
    check_text(service, run)
    pieces = listened(run).pieces()
    assert len(pieces) == 2
    assert run.lines[0] == "finalized " + service.native(Sent(pieces[:1], _RATE))
    kinds = {message["type"] for message in listened(run).messages()}
    assert kinds >= {"SpeechStarted", "UtteranceEnd"}
    assert listened(run).close_code == 1000


def test_pipecat(service: Service) -> None:
    run = service.run("pipecat", "deepgram")
    check_text(service, run)
    check_interims(run)
    # Pipecat closes its side in the instant in which it asks for the end.
    assert listened(run).close_code == 1000


def test_livekit(service: Service) -> None:
    run = service.run("livekit", "deepgram")
    check_text(service, run)
    check_interims(run, "interim_transcript")
    assert listened(run).close_code == 1000
