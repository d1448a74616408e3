"""Latency of live speakers beside one API key that floods live streams with audio.

    python -m benchmarks.floods_beside --speakers 4 --flooding 4 --seconds 25

Each round is a fresh service with the bundled model on CPU: speakers alone, then the same beside a process
whose streams send files of 20 s, one after the other, without saying that these are recordings. Once with
`--max-live-rate 0`, which lets them, and once with 2 and a lead of 10 s, so that the lead is used up early.
The latency of a result is taken from the sending of the last sample that it covers.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from benchmarks.command_line import command_line
from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from common.options import StreamOptions
from parakeet.check.local_stack import LocalStack, running
from parakeet.client import ClientError, connect
from tests.attack.honest import Heard, listen, short_clips
from tests.chaos.client import make_clips

_RATE: Final = 16_000
_FILE_S: Final = 20
_CLIP_S: Final = 8.0
_LEAD_S: Final = 10
_LEAD_USED_UP: Final = "all streams have used up their lead"
_PATIENCE_S: Final = 120.0


async def flood(url: str, key: str, num_streams: int) -> None:
    """Send files over live streams until the process ends. Tell when each stream has used up its lead."""
    clip = make_clips(1)[0]
    pcm = (clip.pcm * (1 + 2 * _RATE * _FILE_S // len(clip.pcm)))[: 2 * _RATE * _FILE_S]

    ahead: set[int] = set()

    async def one(number: int) -> None:
        while True:
            with suppress(ClientError):
                async with await connect(url, options=StreamOptions(), api_key=key, resume=False) as stream:
                    for at in range(0, len(pcm), 2 * _RATE):
                        await stream.send(pcm[at : at + 2 * _RATE])
                    await stream.finish()
                    async for _ in stream.results():
                        pass
                # The file, longer than the lead, was read to its end.
                if number not in ahead:
                    ahead.add(number)
                    if len(ahead) == num_streams:
                        print(_LEAD_USED_UP, flush=True)

    await asyncio.gather(*(one(number) for number in range(num_streams)))


async def measure(rate: float, num_speakers: int, num_flooding: int, seconds: float) -> tuple[Heard, Heard]:
    """Return the results of speakers alone, and beside the flood."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        speaker, flooder = (
            create_key(keys, KeyRecord(key_id=KeyId(""), digest="", name=name))[1]
            for name in ("speaker", "flooder")
        )
        flags = [
            *("--model-size", "tiny", "--device", "cpu", "--num-workers", "1"),
            *("--auth-keys-file", str(keys), "--max-live-rate", f"{rate:g}"),
            *("--max-live-lead-s", str(_LEAD_S)),
        ]
        with running(LocalStack(flags)) as stack:
            await asyncio.to_thread(stack.wait_until_ready)
            url = f"ws://127.0.0.1:{stack.ws_port}"
            clips = short_clips(make_clips(num_speakers), _CLIP_S)
            await listen([url], speaker, clips, num_speakers, 1.0)  # all is warm
            alone = await listen([url], speaker, clips, num_speakers, seconds)
            command = (sys.executable, "-m", "benchmarks.floods_beside", "--flood", url, flooder)
            process = await asyncio.create_subprocess_exec(
                *command, "--flooding", str(num_flooding), stdout=asyncio.subprocess.PIPE
            )
            try:
                assert process.stdout is not None
                told = await asyncio.wait_for(process.stdout.readline(), _PATIENCE_S)
                if told.decode().strip() != _LEAD_USED_UP:
                    raise RuntimeError("the flood ended before its streams had used up their lead")
                beside = await listen([url], speaker, clips, num_speakers, seconds)
            finally:
                process.kill()
                await process.wait()
    return alone, beside


def _row(rate: float, name: str, heard: Heard) -> str:
    late_ms = [1000 * value for value in heard.latency_s]
    p50, p99 = statistics.median(late_ms), statistics.quantiles(late_ms, n=100)[98]
    failed = len(heard.failures)
    return f"| {rate:g} | {name} | {len(late_ms)} | {p50:.0f} | {p99:.0f} | {max(late_ms):.0f} | {failed} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = command_line(__file__, __doc__)
    parser.add_argument("--speakers", type=int, default=4, help="live streams")
    parser.add_argument("--flooding", type=int, default=4, help="streams of the key that floods")
    parser.add_argument("--seconds", type=float, default=25.0, help="audio of each speaker")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[0.0, 2.0], help="values of --max-live-rate, one round each"
    )
    parser.add_argument("--flood", nargs=2, metavar=("URL", "KEY"), help="be the flood")
    arguments = parser.parse_args(argv)
    if arguments.flood:
        url, key = arguments.flood
        asyncio.run(flood(url, key, arguments.flooding))
        return 0
    print("| --max-live-rate | speakers | results | p50, ms | p99, ms | most, ms | failed |")
    print("|---|---|---|---|---|---|---|")
    for rate in arguments.rates:
        alone, beside = asyncio.run(measure(rate, arguments.speakers, arguments.flooding, arguments.seconds))
        print(_row(rate, "alone", alone))
        print(_row(rate, "beside", beside), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
