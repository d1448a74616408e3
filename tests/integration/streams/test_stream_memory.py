"""What a stream keeps in Redis at minutes 1, 5, 8 and 30, played fast (`-s` prints it)."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from parakeet.serve.embedded_redis import EmbeddedRedis
from tests.servers import raw_client
from tests.stream_client import ingress_side, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

_MARKS_MIN = (1, 5, 8, 30)
_SECOND_BYTES = 32_000
# What the null engine asks for as `large` does, --replay-seconds, and what may be read ahead.
_MOST_AUDIO_S = 150.1 + 60 + 4
_OVERHEAD = 1.05


async def test_a_stream_of_half_an_hour_keeps_no_more_than_one_of_minutes(tmp_path: Path) -> None:
    kept: dict[int, dict[str, int]] = {}
    with (
        EmbeddedRedis() as server,
        WorkerProcess(server.url, "w1", tmp_path / "w1.log", snapshots="audio", lease_ms=10_000) as worker,
    ):
        client, pcm = raw_client(server.url), noise(60.0)
        await asyncio.to_thread(worker.ready, client)
        async with ingress_side(server.url) as ingress:
            stream = await ingress.open()
            keys = {
                name: getattr(stream.keys, name) for name in ("audio", "snapshot", "results", "meta", "text")
            }
            for second in range(60 * max(_MARKS_MIN)):
                at = _SECOND_BYTES * (second % 60)
                stream.append(pcm[at : at + _SECOND_BYTES])
                await until(partial(lambda seq: stream.seq >= seq, 6 * (second - 3)), 60, "results")
                if (second + 1) / 60 in _MARKS_MIN:
                    kept[(second + 1) // 60] = {
                        name: client.memory_usage(key, samples=0) or 0 for name, key in keys.items()
                    }
    for minute, sizes in kept.items():
        print(f"minute {minute}: {sum(sizes.values()) / 1e6:.2f} MB", sizes)
        assert sizes["audio"] < _OVERHEAD * _MOST_AUDIO_S * _SECOND_BYTES
        # The text of 24 letters a second is in both.
        assert sizes["text"] + sizes["snapshot"] < 4 * 60 * 24 * minute + 20_000
        assert sizes["results"] < 128 * 1024
    assert sum(kept[30].values()) < 1.3 * sum(kept[5].values())
