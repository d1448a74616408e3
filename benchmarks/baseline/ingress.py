"""WebSocket ingress that awaits one XADD for each message and forwards one publication for each result."""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
from typing import Any

import orjson
import redis.asyncio as aioredis
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from benchmarks.baseline import keys


class Ingress:
    """Accepts WebSockets, appends their audio and sends their results."""

    def __init__(self, url: str) -> None:
        self._redis: Any = aioredis.Redis.from_url(url, protocol=2, max_connections=5000)
        self._name = f"{os.getpid()}"
        self._sockets: dict[int, ServerConnection] = {}

    async def run(self, port: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forward())
            async with serve(self._client, "127.0.0.1", port, compression=None, max_size=1 << 20):
                await asyncio.get_running_loop().create_future()

    async def _client(self, socket: ServerConnection) -> None:
        sid = int(await self._redis.incr(keys.COUNTER))
        audio = keys.audio(sid)
        await self._redis.xgroup_create(audio, keys.GROUP, "0", mkstream=True)
        self._sockets[sid] = socket
        await self._redis.xadd(keys.NEW, {"sid": sid, "channel": keys.channel(self._name)})
        await socket.send(orjson.dumps({"type": "hello", "stream_id": sid, "sample_rate": 16000}), text=True)
        try:
            async for raw in socket:
                message = orjson.loads(raw)
                pcm = base64.b64decode(message["data"], validate=True)
                final = b"1" if message.get("final") else b""
                await self._redis.xadd(audio, {"p": pcm, "x": final})
        except ConnectionClosed:
            pass
        finally:
            self._sockets.pop(sid, None)
            await self._redis.delete(audio, keys.results(sid))

    async def _forward(self) -> None:
        subscriber = self._redis.pubsub()
        await subscriber.subscribe(keys.channel(self._name))
        async for item in subscriber.listen():
            if item["type"] != "message":
                continue
            sid, _, payload = item["data"].partition(b" ")
            socket = self._sockets.get(int(sid))
            if socket is None:
                continue
            try:
                await socket.send(payload, text=True)
                if b'"is_final":true' in payload:
                    asyncio.get_running_loop().create_task(socket.close())
            except ConnectionClosed:
                self._sockets.pop(int(sid), None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--ws-port", type=int, required=True)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Ingress(given.redis_url).run(given.ws_port))


if __name__ == "__main__":
    main()
