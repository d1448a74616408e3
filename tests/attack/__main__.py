"""``python -m tests.attack --seconds 600``: ten honest streams, alone, then beside attackers of every kind.

A stack with the tiny model on CPU, with keys. The attackers are one process that has one core. One of their
keys may have twenty streams and two new ones a second; another, of those that send audio without end, two and
a minute of audio a day, as an operator would allow whom it does not trust. Exit status 1 where a text is
another than without the attack, a stream fails, the 99th percentile of the latency of results is over 1.5
times that without, memory grows beyond its bound, a process is another at the end, descriptors or keys are
left over, the server logs a defect, or a stranger is given anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from common.auth.api_key import KeyId
from common.auth.keys_file import KeyRecord, create_key
from parakeet.check.local_stack import LocalStack, running
from tests.attack.attackers import KINDS
from tests.attack.honest import Heard, listen, short_clips
from tests.attack.report import NUM_HONEST, SPARE_FILES, Outcome, figures_of, report, unfinished
from tests.attack.watch import Watch, keys_left
from tests.chaos.client import make_clips
from tests.servers import make_server, raw_client

_CLIP_S: Final = 8.0
_SETTLE_S: Final = 90.0
_ATTACKER_STREAMS: Final = 20
_ATTACKER_NEW_A_MINUTE: Final = 120
# What an operator allows a key that it does not trust: its audio is work for the model, whatever it is.
_FLOOD_STREAMS: Final = 2
_FLOOD_AUDIO_S: Final = 60
_MAX_UNDECODED_S: Final = 20
_GRACE_S: Final = 5
_TELL_EVERY_S: Final = 10.0
_ROOT: Final = Path(__file__).parents[2]


async def run(
    seconds: float,
    alone_s: float,
    each: int,
    kinds: Sequence[str],
    seed: int,
    folder: Path,
    on_progress: Callable[[str, Sequence[Heard]], None],
) -> Outcome:
    """Run both parts. Raise StackFailed.

    on_progress: called with what is being done, and with what was heard so far.
    """
    keys = folder / "keys.json"
    key = create_key(keys, KeyRecord(key_id=KeyId(""), digest="", name="honest"))[1]
    attackers_key = create_key(
        keys,
        KeyRecord(
            key_id=KeyId(""),
            digest="",
            name="attacker",
            max_streams=_ATTACKER_STREAMS,
            new_per_minute=_ATTACKER_NEW_A_MINUTE,
        ),
    )[1]
    flooder = KeyRecord(
        key_id=KeyId(""),
        digest="",
        name="flooder",
        max_streams=_FLOOD_STREAMS,
        audio_s_per_day=_FLOOD_AUDIO_S,
    )
    flood_key = create_key(keys, flooder)[1]
    server = make_server("embedded")
    server.start()
    faults: list[str] = []

    def on_line(line: str) -> None:
        if " ERROR " in line or " CRITICAL " in line or "Traceback" in line:
            faults.append(line)

    flags = [
        *("--model-size", "tiny", "--device", "cpu", "--num-workers", "1", "--redis-url", server.url),
        *("--auth-keys-file", str(keys), "--max-upload-mb", "4", "--resume-grace-s", str(_GRACE_S)),
        *("--max-stream-seconds", str(_MAX_UNDECODED_S)),
        *("--stream-ttl-s", "20", "--max-num-streams", str(NUM_HONEST + _ATTACKER_STREAMS + 10)),
    ]
    with ExitStack() as exits:
        exits.callback(server.stop)
        stack = exits.enter_context(running(LocalStack(flags, on_line=on_line)))
        await asyncio.to_thread(stack.wait_until_ready)
        client = raw_client(server.url)
        exits.callback(client.close)
        watch = Watch(stack.process.pid)
        urls = [f"ws://127.0.0.1:{stack.ws_port}", f"tcp://127.0.0.1:{stack.tcp_port}"]
        clips = short_clips(make_clips(NUM_HONEST), _CLIP_S)
        await listen(urls, key, clips, NUM_HONEST, 1.0)  # all is warm
        core = max(os.sched_getaffinity(0))
        on_progress("the streams are alone", [])
        with _busy(core):
            alone = await listen(urls, key, clips, NUM_HONEST, alone_s)
        await _settled(watch, {}, client)
        before = watch.look()
        memory_before = {role: values[-1] for role, values in watch.memory_bytes.items()}
        order = {
            "port": stack.tcp_port,
            "ws_port": stack.ws_port,
            "status_port": stack.status_port,
            "key": attackers_key,
            "flood_key": flood_key,
            "each": each,
            "kinds": list(kinds),
            "seed": seed,
            "seconds": seconds,
            "core": core,
        }
        watching = asyncio.create_task(watch.run(), name="watch")
        attackers = asyncio.create_task(_attack(order), name="attack")
        beside = Heard()
        telling = asyncio.create_task(_tell(on_progress, [alone, beside]), name="tell")
        await listen(urls, key, clips, NUM_HONEST, seconds, beside)
        telling.cancel()
        on_progress("the attackers come to their end", [alone, beside])
        attack = await attackers
        left = await _settled(watch, before, client)
        watching.cancel()
        after = watch.look()
    files = {role: (before[role], after.get(role, -1)) for role in before}
    return Outcome(alone, beside, attack, watch, files, memory_before, left, faults)


async def _tell(on_progress: Callable[[str, Sequence[Heard]], None], heard: Sequence[Heard]) -> None:
    """Tell every few seconds how it goes, until cancelled."""
    while True:
        on_progress("the attack", heard)
        await asyncio.sleep(_TELL_EVERY_S)


@contextmanager
def _busy(core: int) -> Iterator[None]:
    """Keep a core as busy as attackers will: what they cost beyond the core that they have is what counts."""
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _attack(order: dict[str, Any]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attack.attackers"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    try:
        async with asyncio.timeout(order["seconds"] + 60):
            told, _ = await process.communicate(json.dumps(order).encode() + b"\n")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    result: dict[str, Any] = json.loads(told)
    return result


async def _settled(watch: Watch, files: dict[str, int], client: Any) -> list[str]:
    """Wait until descriptors are back and no stream has a key; returns the keys that are left."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        now, left = watch.look(), keys_left(client)
        back = all(now.get(role, 0) <= count + SPARE_FILES for role, count in files.items())
        if (back and not left) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the attack takes")
    parser.add_argument(
        "--alone-s", type=float, help="how long the streams are alone before; a fifth, 20 s at least"
    )
    parser.add_argument("--each", type=int, default=3, help="attackers of each kind at once")
    parser.add_argument(
        "--kinds", default="", help=f"of {', '.join(sorted(KINDS))}; by commas, all where empty"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of what the attackers draw at random")
    parser.add_argument("--report", type=Path, help="file to write the table to, too")
    given = parser.parse_args()
    kinds = [kind for kind in given.kinds.split(",") if kind]
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    alone_s = given.alone_s or max(20.0, given.seconds / 5)
    command = " ".join(["python -m tests.attack", *sys.argv[1:]])
    doing, so_far = "the stack starts", list[Heard]()

    def write(text: str) -> None:
        if given.report is not None:
            given.report.write_text(text)

    def on_progress(part: str, heard: Sequence[Heard]) -> None:
        nonlocal doing
        doing, so_far[:] = part, heard
        write(unfinished(command, doing, so_far))

    try:
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            seen = asyncio.run(
                run(given.seconds, alone_s, given.each, kinds, given.seed, Path(folder), on_progress)
            )
    except BaseException as error:  # whatever it was, the report says so
        write(unfinished(command, doing, so_far, error))
        raise
    figures = figures_of(seen)
    text = report(seen, figures, command)
    sys.stdout.write(text)
    write(text)
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
