"""Lanes with too few pages for their streams: each sheds its newest one, and no other notices."""

from __future__ import annotations

import asyncio
import wave
from pathlib import Path

import pytest

import parakeet
from tests.group_process import GroupProcess
from tests.servers import raw_client
from tests.stream_client import ClientStream, ingress_side
from tests.waiting import until

pytestmark = pytest.mark.one_server

# Of a stream of the tiny model on CPU: 70 frames of context and 8 of a step, in pages of 16.
PAGES_OF_A_STREAM = 5
NUM_LANES = 2
SLOTS_OF_A_LANE = 5


async def test_lanes_out_of_pages_shed_their_newest_streams(redis_url: str, tmp_path: Path) -> None:
    with wave.open(str(Path(parakeet.__file__).parent / "recordings" / "jfk.wav")) as recording:
        pcm = recording.readframes(recording.getnframes())
    half = len(pcm) // 4 * 2
    flags = {"backend": "native", "model_size": "tiny", "device": "cpu", "num_threads": 1}
    pages = NUM_LANES * (PAGES_OF_A_STREAM + 1)
    group = GroupProcess(
        redis_url,
        "g1",
        tmp_path / "g1.log",
        lanes=NUM_LANES,
        module="tests.altered.paged_group",
        worker_max_streams=NUM_LANES * SLOTS_OF_A_LANE,
        lease_ms=600_000,  # a takeover would move streams to another lane
        paged_kv_page_size=16,
        paged_kv_max_pages=pages,
        **flags,
    )
    with group:
        await asyncio.to_thread(group.ready, raw_client(redis_url))
        pids = group.lane_pids
        async with ingress_side(redis_url) as ingress:
            alone = await ingress.open()
            alone.append(pcm, final=True)
            await ingress.ended(alone, timeout_s=120.0)
            assert "do for your country" in alone.text

            # Too many for one lane, and each would hold all of its pages while it is open.
            streams: list[ClientStream] = []
            for _ in range(SLOTS_OF_A_LANE + 1):
                streams.append(await ingress.open())
                await until(lambda: bool(streams[-1].worker), what="an owner")
            for stream in streams:
                stream.append(pcm[:half])
            kept = [next(one for one in streams if one.worker == lane) for lane in group.lane_names]
            shed = [stream for stream in streams if stream not in kept]
            await ingress.ended(*shed, timeout_s=120.0)
            assert [stream.sent[-1].get("code") for stream in shed] == ["worker_failed"] * len(shed)
            for stream in kept:
                stream.append(pcm[half:], final=True)
            await ingress.ended(*kept, timeout_s=120.0)
            assert [stream.text for stream in kept] == [alone.text] * NUM_LANES

            # The pages are free again, and nobody has ended for it.
            for _ in range(3):
                again = await ingress.open()
                again.append(pcm, final=True)
                await ingress.ended(again, timeout_s=120.0)
                assert again.text == alone.text
            assert group.lane_pids == pids
