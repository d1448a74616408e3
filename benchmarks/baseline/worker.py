"""Worker that blocks on the keys of all streams and writes, publishes and acks each result alone."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import orjson
import redis
from redis.exceptions import ResponseError

from benchmarks.baseline import keys

CHUNK_SAMPLES = 2560
CONSUMER = "worker"


@dataclass(slots=True)
class Stream:
    """The worker's state of one stream."""

    sid: int
    channel: str
    samples: int = 0
    decoded: int = 0
    seq: int = 0
    text: str = ""


class Worker:
    """Reads audio of all streams, in one thread, and writes results."""

    def __init__(self, url: str) -> None:
        self._redis: Any = redis.Redis.from_url(url, protocol=2, socket_timeout=30)
        self._streams: dict[str, Stream] = {}
        self._last_new = "0"

    def run(self) -> None:
        while True:
            self._claim()
            if not self._streams:
                continue
            try:
                reply = self._redis.xreadgroup(
                    keys.GROUP, CONSUMER, dict.fromkeys(self._streams, ">"), count=16, block=20
                )
            except ResponseError:
                self._forget_deleted()
                continue
            for name, entries in reply or ():
                key = name.decode()
                for entry_id, fields in entries:
                    self._decode(key, fields)
                    self._redis.xack(key, keys.GROUP, entry_id)

    def _claim(self) -> None:
        block = None if self._streams else 1000
        for _, entries in self._redis.xread({keys.NEW: self._last_new}, block=block) or ():
            for entry_id, fields in entries:
                self._last_new = entry_id
                sid = int(fields[b"sid"])
                self._streams[keys.audio(sid)] = Stream(sid, fields[b"channel"].decode())

    def _forget_deleted(self) -> None:
        for key in list(self._streams):
            if not self._redis.exists(key):
                del self._streams[key]

    def _decode(self, key: str, fields: dict[bytes, bytes]) -> None:
        stream = self._streams.get(key)
        if stream is None:
            return
        stream.samples += len(fields[b"p"]) // 2
        while stream.samples - stream.decoded >= CHUNK_SAMPLES:
            stream.decoded += CHUNK_SAMPLES
            self._result(stream, final=False)
        if fields[b"x"]:
            self._result(stream, final=True)
            del self._streams[key]

    def _result(self, stream: Stream, *, final: bool) -> None:
        token = stream.seq % 1024
        stream.text += f" t{token}"
        stream.seq += 1
        message = orjson.dumps(
            {
                "type": "result",
                "text": stream.text,
                "token_ids": [token],
                "confidence_scores": [1.0],
                "is_final": final,
                "last_state": "speech",
                "turn_detection": "running",
                "seq": stream.seq,
                "audio_ack_samples": stream.samples if final else stream.decoded,
            }
        )
        self._redis.xadd(keys.results(stream.sid), {"j": message}, maxlen=256, approximate=True)
        self._redis.publish(stream.channel, b"%d %s" % (stream.sid, message))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis-url", required=True)
    Worker(parser.parse_args().redis_url).run()


if __name__ == "__main__":
    main()
