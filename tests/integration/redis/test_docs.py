"""What docs/redis.md says to type shows, while speech flows, what it says that it shows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from common.redis.keys import Keys
from tests.documents import ROOT, blocks
from tests.servers import raw_client
from tests.stream_client import expected_text, ingress_side, noise
from tests.waiting import until
from tests.worker_process import WorkerProcess

DOCUMENT = ROOT / "docs" / "redis.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def documented_commands() -> list[str]:
    """Lines of the shell blocks that look at Redis."""
    lines = [line for block in blocks(DOCUMENT, "bash") for line in block.text.splitlines()]
    return [line for line in lines if line.startswith("redis-cli")]


def typed(command: str, url: str, **variables: str) -> str:
    """Run a documented command against a server; return what it prints."""
    client = shutil.which("redis-cli")
    assert client is not None, "redis-cli is not installed"
    socket = url.removeprefix("unix://")
    shell = f'redis-cli() {{ {client} -s {socket} "$@"; }}\n{command}'
    done = subprocess.run(
        ["bash", "-c", shell],
        env=variables,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    assert not done.stderr, f"{command}: {done.stderr}"
    assert not done.stdout.startswith("ERR"), f"{command}: {done.stdout}"
    return done.stdout


@pytest.mark.needs_program("redis-cli")
async def test_every_documented_command_shows_something(redis_url: str, tmp_path: Path) -> None:
    client = raw_client(redis_url)
    with WorkerProcess(redis_url, "w1", tmp_path / "w1.log") as worker:
        worker.ready(client)
        async with ingress_side(redis_url, ingress="i1") as ingress:
            await ingress.beat()
            stream = await ingress.open()
            stream.append(noise(6.49))  # 40 chunks and a part of one
            await until(lambda: stream.seq == 40, what="results, of which so many have their text kept")
            await until(lambda: client.zcard("px:{0}:ready:w1") == 0, what="a quiet worker")
            seen = {
                command: typed(command, redis_url, SID=str(stream.stream), WID="w1", IID="i1")
                for command in documented_commands()
            }
            assert len(seen) >= 20
            silent = {command for command, shown in seen.items() if not shown.strip()}
            leak_check = next(command for command in seen if "--scan" in command)
            nothing_ready = next(command for command in seen if "ZRANGE" in command and "ready" in command)
            # The settings of the cluster are stated by the ingress process, which this test is not.
            settings = next(command for command in seen if ":conf" in command)
            assert silent == {leak_check, nothing_ready, settings}

            def shown(*words: str) -> str:
                return next(text for command, text in seen.items() if all(word in command for word in words))

            assert "owner\nw1" in shown("HGETALL", ":m")
            assert "asr-1" in shown("XINFO GROUPS")
            assert "entries-read" in shown("XINFO GROUPS")
            assert "1-40" in shown("XREVRANGE")
            assert expected_text(noise(6.49)).startswith(shown("GET", ":t").strip())
            assert shown("XPENDING", "asr-1").startswith("1\n"), "less than a chunk is in the engine"
            assert "w1\n1" in shown("XPENDING", "workers"), "one stream owned"
            assert f"sid\n{stream.stream}" in shown("XRANGE", ":new")
            assert "w1" in shown("ZRANGE", "workers")
            assert "capacity\n50" in shown("HGETALL", ":w:")


def test_every_key_is_documented() -> None:
    keys = Keys()
    stream = keys.stream(7)  # type: ignore[arg-type]
    names = [
        *(keys.settings, keys.stream_counter, keys.admissions, keys.workers, keys.ingresses),
        *(keys.once("NONCE"), keys.worker("WID"), keys.ingress("IID"), keys.channel("IID")),  # type: ignore[arg-type]
    ]
    for name in names:
        assert f"`{name.decode()}`" in TEXT
    for name in (
        *(stream.meta, stream.audio, stream.results, stream.snapshot, stream.dead, stream.dead_audio),
        keys.assignments(0),
    ):
        assert f"`{name.decode().replace('{0}', '{k}').replace(':7:', ':SID:')}`" in TEXT
    ready = keys.ready(0, "WID").decode()  # type: ignore[arg-type]
    assert f"`{ready.replace('{0}', '{k}')}`" in TEXT
