"""Attackers on one core: ``python -m tests.attack.attackers`` does what stdin says, until its time is over.

Each kind does one thing to the server again and again, over its protocol: malformed, oversized, slow,
flooding, without a key, or leaving and coming back. A few of each kind run at once in this one process. What
they did is one JSON line on stdout at the end; a stranger who was given anything is a `leak`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.attack import messages
from tests.attack.messages import frame, upgrade
from tests.fuzz.mutated_bytes import mutated

HOST: Final = "127.0.0.1"
STREAM_PATHS: Final = ("/", "/ws", "/v1/listen", "/v1/realtime")
UPLOAD_PATHS: Final = ("/v1/listen", "/v1/audio/transcriptions")
# What shows that a stranger is served: a greeting, a text, an upgrade, or a transcript.
_SERVED: Final = (b'"type":"hello"', b'"type":"result"', b"HTTP/1.1 101", b'"transcript"', b'"text":')
_RESET: Final = struct.pack("ii", 1, 0)
_PATIENCE_S: Final = 15.0
_DRIP_S: Final = 0.5
_LARGE: Final = 1 << 20


@dataclass(slots=True)
class Tally:
    """What was done.

    actions: by kind.   answers: first words of answers.   leaks: answers that no stranger should have.
    """

    actions: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Attacker:
    """One of them: where it goes, with which keys, and its dice.

    key: of those that send what is wrong.   flood_key: of those that send too much; it may have little.
    """

    port: int
    ws_port: int
    status_port: int
    key: str
    flood_key: str
    random: Random
    tally: Tally

    @asynccontextmanager
    async def connected(self, port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection from one of many addresses, which ends with a reset."""
        source = f"127.0.2.{self.random.randrange(1, 250)}"
        reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
        try:
            yield reader, writer
        finally:
            # In good order its port would stay taken for a minute.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader, *, seconds: float = 2.0) -> bytes:
        """All that comes in so many seconds, or up to the end."""
        told = b""
        try:
            async with asyncio.timeout(seconds):
                while len(told) < _LARGE and (part := await reader.read(65_536)):
                    told += part
        except TimeoutError:
            pass
        self.tally.answers[told[:12].decode("latin-1") if told else "nothing"] += 1
        return told

    async def stranger_told(self, kind: str, reader: asyncio.StreamReader) -> None:
        """Nothing that comes may be more than a refusal."""
        told = await self.answer(reader)
        for served in _SERVED:
            if served in told:
                self.tally.leaks.append(f"{kind}: {told[:200]!r}")

    async def admitted_tcp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, floods: bool = False
    ) -> None:
        """Show the key, and take the greeting or the refusal."""
        key = self.flood_key if floods else self.key
        writer.write(json.dumps({"type": "auth", "token": key}).encode() + b"\n")
        await reader.readline()

    @asynccontextmanager
    async def websocket(
        self, *, floods: bool = False
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A WebSocket with the key, at any path."""
        async with self.connected(self.ws_port) as (reader, writer):
            key = self.flood_key if floods else self.key
            writer.write(upgrade(self.random.choice(STREAM_PATHS), key))
            await reader.readuntil(b"\r\n\r\n")
            yield reader, writer


Attack = Callable[[Attacker], Awaitable[None]]


# The TCP port


async def tcp_bytes(one: Attacker) -> None:
    """What is no JSON, or nearly."""
    async with one.connected(one.port) as (reader, writer):
        writer.write(one.random.randbytes(one.random.randint(1, 4000)) + b"\n")
        writer.write(mutated(one.random, one.random.choice(messages.NATIVE)))
        await one.answer(reader)


async def tcp_long_line(one: Attacker) -> None:
    """A line without an end."""
    async with one.connected(one.port) as (reader, writer):
        for _ in range(64):
            writer.write(b"a" * 65_536)
            await writer.drain()
        await one.answer(reader)


async def tcp_deep_json(one: Attacker) -> None:
    """A message of brackets."""
    async with one.connected(one.port) as (reader, writer):
        await one.admitted_tcp(reader, writer)
        writer.write(b'{"type":"config","x":' + b"[" * 200_000 + b"\n")
        await one.answer(reader)


async def tcp_slow(one: Attacker) -> None:
    """A byte now and then."""
    async with one.connected(one.port) as (reader, writer):
        for byte in b'{"type":"auth","token":"' * 2:
            writer.write(bytes((byte,)))
            await asyncio.sleep(_DRIP_S)
        await one.stranger_told("tcp_slow", reader)


async def tcp_stranger(one: Attacker) -> None:
    """Streams without a key, or with another."""
    async with one.connected(one.port) as (reader, writer):
        if one.random.random() < 0.5:
            writer.write(b'{"type":"auth","token":"pk_abcdefgh_' + b"A" * 43 + b'"}\n')
        writer.writelines(messages.NATIVE)
        await one.stranger_told("tcp_stranger", reader)


async def tcp_reset(one: Attacker) -> None:
    """Comes and goes."""
    async with one.connected(one.port):
        pass


async def tcp_messages(one: Attacker) -> None:
    """With a key: messages that are nearly right."""
    async with one.connected(one.port) as (reader, writer):
        await one.admitted_tcp(reader, writer)
        for _ in range(8):
            writer.write(mutated(one.random, one.random.choice(messages.NATIVE)))
        await one.answer(reader)


async def tcp_flood(one: Attacker) -> None:
    """With a key: all audio that goes in, and no answer is read."""
    async with one.connected(one.port) as (reader, writer):
        await one.admitted_tcp(reader, writer, floods=True)
        while True:
            writer.write(messages.AUDIO_LINE * 8)
            await writer.drain()


async def tcp_pings(one: Attacker) -> None:
    """With a key: pings, and none of their answers is read."""
    async with one.connected(one.port) as (reader, writer):
        await one.admitted_tcp(reader, writer)
        while True:
            writer.write(b'{"type":"ping"}\n' * 2000)
            await writer.drain()


async def tcp_leaves(one: Attacker) -> None:
    """With a key: begins a stream that may be resumed, leaves, and resumes with a wrong secret."""
    async with one.connected(one.port) as (reader, writer):
        await one.admitted_tcp(reader, writer)
        writer.write(b'{"type":"config","resume":true}\n' + messages.AUDIO_LINE)
        await writer.drain()
    async with one.connected(one.port) as (reader, writer):
        await one.admitted_tcp(reader, writer)
        number = one.random.randrange(1, 1 << 20)
        writer.write(
            b'{"type":"resume","stream_id":%d,"resume_token":"x","last_seq":0,"audio_ack_samples":0}\n'
            % number
        )
        await one.answer(reader)


# WebSockets


async def ws_slow_head(one: Attacker) -> None:
    """A head that never ends."""
    async with one.connected(one.ws_port) as (reader, writer):
        for byte in upgrade("/", "")[:40]:
            writer.write(bytes((byte,)))
            await asyncio.sleep(_DRIP_S)
        await one.stranger_told("ws_slow_head", reader)


async def ws_stranger(one: Attacker) -> None:
    """An upgrade without a key, with another, or from a foreign page."""
    kind = one.random.randrange(3)
    extra = b"Origin: https://evil.example\r\n" if kind == 2 else b""
    key = ("", "pk_abcdefgh_" + "A" * 43, "")[kind]
    async with one.connected(one.ws_port) as (reader, writer):
        writer.write(upgrade(one.random.choice(STREAM_PATHS), key, extra))
        writer.write(frame(1, messages.NATIVE[0]))
        await one.stranger_told("ws_stranger", reader)


async def ws_foreign_page(one: Attacker) -> None:
    """A foreign page that has a good key."""
    async with one.connected(one.ws_port) as (reader, writer):
        path = one.random.choice(STREAM_PATHS)
        writer.write(upgrade(path, one.key, b"Origin: https://evil.example\r\n"))
        await one.stranger_told("ws_foreign_page", reader)


async def ws_reset(one: Attacker) -> None:
    """Opens, and is gone."""
    async with one.websocket():
        pass


async def ws_frames(one: Attacker) -> None:
    """Frames that are nearly right, in every dialect."""
    async with one.websocket() as (reader, writer):
        for _ in range(8):
            payload = mutated(one.random, one.random.choice(messages.ANY_DIALECT))
            writer.write(frame(one.random.choice((0, 1, 1, 1, 2, 3, 8, 9, 10, 15)), payload))
        await one.answer(reader)


async def ws_bytes(one: Attacker) -> None:
    """What is no frame."""
    async with one.websocket() as (reader, writer):
        writer.write(one.random.randbytes(one.random.randint(1, 4000)))
        await one.answer(reader)


async def ws_huge_frame(one: Attacker) -> None:
    """A frame of which the head says that it is as long as there is."""
    async with one.websocket() as (reader, writer):
        writer.write(b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4) + bytes(_LARGE))
        await one.answer(reader)


async def ws_fragments(one: Attacker) -> None:
    """A message in pieces without an end."""
    async with one.websocket() as (reader, writer):
        writer.write(frame(1, b"{", fin=False))
        for _ in range(2000):
            writer.write(frame(0, b'"', fin=False))
            await writer.drain()
        await one.answer(reader)


async def ws_pings(one: Attacker) -> None:
    """Pings, and none of their answers is read."""
    async with one.websocket() as (_, writer):
        while True:
            writer.write(frame(9, bytes(125)) * 100)
            await writer.drain()


async def ws_flood(one: Attacker) -> None:
    """Audio as fast as it goes in, and no result is read."""
    async with one.websocket(floods=True) as (_, writer):
        while True:
            writer.write(frame(2, bytes(32_000)))
            await writer.drain()


async def ws_silent(one: Attacker) -> None:
    """Has a slot and says nothing."""
    async with one.websocket() as (reader, _):
        await one.answer(reader, seconds=_PATIENCE_S)


# Plain HTTP


async def http_heads(one: Attacker) -> None:
    """What is no request, or none that is here."""
    async with one.connected(one.ws_port) as (reader, writer):
        writer.write(one.random.choice(messages.HEADS))
        await one.stranger_told("http_heads", reader)


async def http_long_head(one: Attacker) -> None:
    """Headers without an end."""
    async with one.connected(one.ws_port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n")
        for number in range(4000):
            writer.write(b"X-%d: %s\r\n" % (number, b"a" * 100))
            await writer.drain()
        await one.stranger_told("http_long_head", reader)


async def http_pipeline(one: Attacker) -> None:
    """A thousand requests at once."""
    async with one.connected(one.ws_port) as (reader, writer):
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n" * 1000)
        await one.answer(reader)


async def http_stranger(one: Attacker) -> None:
    """Uploads without a key."""
    async with one.connected(one.ws_port) as (reader, writer):
        path = one.random.choice(UPLOAD_PATHS)
        writer.write(messages.upload_head(path, "", len(messages.WAV)) + messages.WAV)
        await one.stranger_told("http_stranger", reader)


async def http_upload_garbage(one: Attacker) -> None:
    """Uploads that are no recording, or a broken one."""
    async with one.connected(one.ws_port) as (reader, writer):
        body = mutated(one.random, one.random.choice(messages.RECORDINGS))
        writer.write(messages.upload_head(one.random.choice(UPLOAD_PATHS), one.key, len(body)) + body)
        await one.answer(reader, seconds=_PATIENCE_S)


async def http_upload_cut(one: Attacker) -> None:
    """An upload whose sender leaves."""
    async with one.connected(one.ws_port) as (_, writer):
        writer.write(messages.upload_head(one.random.choice(UPLOAD_PATHS), one.key, _LARGE) + messages.WAV)
        await writer.drain()
        await asyncio.sleep(_DRIP_S)


async def http_upload_slow(one: Attacker) -> None:
    """An upload that hardly comes."""
    async with one.connected(one.ws_port) as (_, writer):
        writer.write(messages.upload_head(one.random.choice(UPLOAD_PATHS), one.key, _LARGE))
        while True:
            writer.write(b"R")
            await writer.drain()
            await asyncio.sleep(_DRIP_S)


async def http_upload_large(one: Attacker) -> None:
    """An upload that is larger than it may be, its length said or not."""
    async with one.connected(one.ws_port) as (reader, writer):
        path = one.random.choice(UPLOAD_PATHS)
        if one.random.random() < 0.5:
            writer.write(messages.upload_head(path, one.key, 1 << 40))
            piece = bytes(65_536)
        else:
            writer.write(messages.upload_head(path, one.key, None))
            piece = b"10000\r\n" + bytes(65_536) + b"\r\n"
        for _ in range(256):
            writer.write(piece)
            await writer.drain()
        await one.answer(reader)


async def http_tiny_chunks(one: Attacker) -> None:
    """A body in chunks of one byte."""
    async with one.connected(one.ws_port) as (_, writer):
        key = one.random.choice(("", one.key))
        writer.write(messages.upload_head(one.random.choice(UPLOAD_PATHS), key, None))
        while True:
            writer.write(b"1\r\nR\r\n" * 10_000)
            await writer.drain()


async def status_flood(one: Attacker) -> None:
    """Asks for the status again and again."""
    async with one.connected(one.status_port) as (reader, _):
        await one.answer(reader)


KINDS: Final[dict[str, Attack]] = {
    kind.__name__: kind
    for kind in (
        *(tcp_bytes, tcp_long_line, tcp_deep_json, tcp_slow, tcp_stranger, tcp_reset, tcp_messages),
        *(tcp_flood, tcp_pings, tcp_leaves),
        *(ws_slow_head, ws_stranger, ws_foreign_page, ws_reset, ws_frames, ws_bytes, ws_huge_frame),
        *(ws_fragments, ws_pings, ws_flood, ws_silent),
        *(http_heads, http_long_head, http_pipeline, http_stranger, http_upload_garbage, http_upload_cut),
        *(http_upload_slow, http_upload_large, http_tiny_chunks, status_flood),
    )
}


async def _again(kind: str, one: Attacker, end: float) -> None:
    """Attack until the end; whatever the server does to a connection, the next one follows."""
    while (left := end - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(min(_PATIENCE_S, left)):
                await KINDS[kind](one)
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        one.tally.actions[kind] += 1
        # The others of this one thread have their turn.
        await asyncio.sleep(0)


async def attack(order: dict[str, Any]) -> Tally:
    """Run all kinds for so many seconds, `each` of them at once."""
    tally, end = Tally(), time.monotonic() + order["seconds"]
    async with asyncio.TaskGroup() as tasks:
        for number, kind in enumerate(sorted(order["kinds"] or KINDS)):
            for copy in range(order["each"]):
                dice = Random(f"{order['seed']}-{number}-{copy}")
                told = ("port", "ws_port", "status_port", "key", "flood_key")
                one = Attacker(**{name: order[name] for name in told}, random=dice, tally=tally)
                tasks.create_task(_again(kind, one, end), name=f"{kind}-{copy}")
    return tally


def main() -> None:
    """Read the order, attack on one core, tell what was done."""
    order = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, {order["core"]})
    began, cpu_s = time.monotonic(), time.process_time()
    tally = asyncio.run(attack(order))
    told = {
        "actions": dict(tally.actions),
        "answers": dict(tally.answers.most_common(12)),
        "leaks": tally.leaks[:20],
        "core_share": (time.process_time() - cpu_s) / (time.monotonic() - began),
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
