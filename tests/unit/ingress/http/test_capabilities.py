"""`GET /v1/capabilities`, and that what it names is served."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from pathlib import Path

import pytest

from common.settings import parse
from ingress.api.capabilities import CAPABILITIES_ENDPOINT
from ingress.api.openai_errors import openai_refusal
from ingress.capabilities import CAPABILITIES, PROTOCOLS
from ingress.http.refusal import Refusal
from ingress.server import LISTEN_PATH, REALTIME_PATH, IngressServer
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving

pytestmark = pytest.mark.one_loop


async def test_capabilities_are_those_of_hello() -> None:
    async with serving(ScriptedBackplane(), endpoints=CAPABILITIES_ENDPOINT) as harness:
        client = await harness.raw_ws()
        await client.send(b"GET /v1/capabilities HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
        await client.close()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(body) == {"capabilities": list(CAPABILITIES), "protocols": PROTOCOLS}
        native = await harness.tcp()
        assert (await native.receive())["capabilities"] == list(CAPABILITIES)
        await native.close()


async def test_protocols_are_where_they_are_said_to_be() -> None:
    site = IngressServer(parse("ingress", (), {}))._site
    live = {REALTIME_PATH: "openai_realtime", LISTEN_PATH: "deepgram_live"}
    assert {PROTOCOLS[name] for name in live.values()} == set(live) == set(site.streams) - {"/", "/ws"}
    uploads = {route.path for route in site.endpoints if "POST" in (route.methods or ())}
    assert set(PROTOCOLS.values()) - set(live) <= uploads


def test_the_document_names_every_capability() -> None:
    text = (Path(__file__).parents[4] / "docs" / "protocol.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith("| `capabilities` |"))
    assert set(re.findall(r"`(\w+)`", row)) - {"capabilities"} == set(CAPABILITIES)


def test_refusals_for_openai_clients_are_json() -> None:
    for status, kind, code in (
        (HTTPStatus.UNAUTHORIZED, "invalid_request_error", "invalid_api_key"),
        (HTTPStatus.TOO_MANY_REQUESTS, "invalid_request_error", "rate_limit_exceeded"),
        (HTTPStatus.NOT_FOUND, "invalid_request_error", None),
        (HTTPStatus.SERVICE_UNAVAILABLE, "server_error", None),
    ):
        made = openai_refusal(Refusal(status, "A sentence.", (("Retry-After", "5"),)))
        error = {"message": "A sentence.", "type": kind, "param": None, "code": code}
        assert json.loads(made.content) == {"error": error}
        assert b"Content-Type: application/json\r\n" in made.answer()
        assert b"Retry-After: 5\r\n" in made.answer()
