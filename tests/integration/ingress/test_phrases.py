"""Phrases from a client's message to its text: two workers with the tiny model, and one client's bad list."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.oracle.models import JFK, speech
from tests.ports import HOST
from tests.stack import Stack

pytestmark = pytest.mark.one_server

TINY: dict[str, Any] = {
    "backend": "native",
    "model_size": "tiny",
    "device": "cpu",
    "turn_detection": "off",
    "num_threads": 1,
}
FIRST = [{"text": text, "boost": 10} for text in ("fellow american", "ask knot", "mike", "what you're")]
SECOND = [{"text": text, "boost": 10} for text in ("contrary", "asking", "come due", "four ewe")]
UNWRITABLE = "Москва"
_PART = 6_400  # bytes: 200 ms


def pcm() -> bytes:
    return bytes((speech(JFK) * 32_768).astype("<i2").tobytes())


def line(kind: str, **fields: object) -> bytes:
    return json.dumps({"type": kind, **fields}).encode() + b"\n"


async def spoken(
    port: int, *, kill: Callable[[], None] | None = None, phrases: bool = True
) -> list[dict[str, Any]]:
    """A stream whose phrases change on its way, and which is finalized once; everything that it is told."""
    reader, writer = await asyncio.open_connection(HOST, port)
    if phrases:
        writer.write(line("config", phrases=FIRST))
    audio = pcm()
    parts = [audio[at : at + _PART] for at in range(0, len(audio), _PART)]
    for number, part in enumerate(parts):
        if phrases and number == len(parts) // 3:
            writer.write(line("phrases", phrases=SECOND))
        if phrases and number == len(parts) // 2:
            writer.write(line("phrases", phrases=[*SECOND, *FIRST]))
        if number == 2 * len(parts) // 3:
            writer.write(line("finalize"))
        writer.write(line("audio", data=base64.b64encode(part).decode(), final=number == len(parts) - 1))
        await writer.drain()
        if kill is not None and number == 3 * len(parts) // 5:
            kill()
    async with asyncio.timeout(120):
        told = [json.loads(answer) for answer in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    return told


def results(told: list[dict[str, Any]]) -> list[list[Any]]:
    fields = ("seq", "text", "from_finalize", "is_final", "token_ids", "audio_ack_samples")
    return [[one.get(field) for field in fields] for one in told if one["type"] == "result"]


async def test_a_takeover_hears_with_the_phrases_that_were_in_force(stack: Stack) -> None:
    first = stack.worker("w-1", replay_seconds=2, lease_ms=2000, **TINY)
    ingress = stack.ingress()
    plain = results(await spoken(ingress.port, phrases=False))
    undisturbed = results(await spoken(ingress.port))
    assert undisturbed[-1][1] != plain[-1][1], "phrases change what is heard"

    def kill() -> None:
        stack.worker("w-2", replay_seconds=2, **TINY)
        first.send(signal.SIGKILL)

    assert results(await spoken(ingress.port, kill=kill)) == undisturbed
    await stack.empty()


async def test_a_phrase_that_the_model_cannot_write_ends_its_stream_alone(stack: Stack) -> None:
    stack.worker("w-1", **TINY)
    ingress = stack.ingress()
    undisturbed = results(await spoken(ingress.port, phrases=False))
    other = asyncio.ensure_future(spoken(ingress.port, phrases=False))
    reader, writer = await asyncio.open_connection(HOST, ingress.port)
    writer.write(line("config", phrases=["hello", UNWRITABLE]))
    async with asyncio.timeout(120):
        told = [json.loads(answer) for answer in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    assert [one["type"] for one in told] == ["hello", "error"]
    assert told[0]["capabilities"].count("phrases") == 1
    assert told[1]["code"] == "bad_option"
    assert UNWRITABLE in told[1]["message"]
    assert results(await other) == undisturbed
    await stack.empty()


async def test_a_bad_change_is_told_behind_all_that_was_said_before_it(stack: Stack) -> None:
    stack.worker("w-1", **TINY)
    ingress = stack.ingress()
    audio = pcm()
    before = 5 * 32_000
    told = []
    for bad in (False, True):
        reader, writer = await asyncio.open_connection(HOST, ingress.port)
        writer.write(line("audio", data=base64.b64encode(audio[:before]).decode()))
        if bad:
            writer.write(line("phrases", phrases=[UNWRITABLE]))
        writer.write(line("audio", data=base64.b64encode(audio[before:]).decode(), final=True))
        async with asyncio.timeout(120):
            told.append([json.loads(answer) for answer in (await reader.read()).splitlines()])
        writer.close()
        await writer.wait_closed()
    good, failed = told
    assert failed[-1]["type"] == "error"
    assert failed[-1]["code"] == "bad_option"
    heard = results(failed)
    assert heard == results(good)[: len(heard)]
    assert heard[-1][5] >= before // 2 - 2 * 2_560
    await stack.empty()
