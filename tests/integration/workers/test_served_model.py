"""One cluster, one model: another one is refused at start, and gets a cluster of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.entries import LAYOUT_VERSION, WorkerId
from common.errors import SettingsMismatch
from common.languages import ENGLISH, UNKNOWN, Languages
from common.presence.leases import WorkerLease
from common.presence.served_model import ServedModel, leave, served_languages
from common.redis.clients import AsyncRedis, PipelinedCommands, RedisServers, SyncRedis
from common.redis.keys import Keys
from parakeet.client import connect
from tests.ports import free_ports
from tests.servers import raw_client
from tests.service_process import ServiceProcess
from tests.stack import TIMEOUTS, Stack, transcribe
from tests.stream_client import expected_text, noise

TINY = ServedModel("/models/tiny", "00aa", 160, "70, 1", "on")


@pytest.fixture
def redis(redis_url: str) -> Iterator[SyncRedis]:
    made = SyncRedis(RedisServers.parse((redis_url,)))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            ServedModel("large@1234", "00bb", 160, "70, 1", "on"),
            r"large@1234 \(weights 00bb\), and the running cluster has /models/tiny \(weights 00aa\)",
        ),
        (
            ServedModel("tiny", "00aa", 320, "70, 3", "on"),
            "--chunk-ms is 320 here, and the running cluster has 160: ",
        ),
        (
            ServedModel("tiny", "00aa", 160, "140, 1", "on"),
            "attention context is 140, 1 frames, and the running cluster has 70, 1: ",
        ),
        (
            ServedModel("tiny", "00aa", 160, "70, 1", "off"),
            "--eou-reset is off here, and the running cluster has on: ",
        ),
        (
            ServedModel("tiny", "00aa", 160, "70, 1", "on", "cd12"),
            "The hash of the phrases of --phrases-file is cd12 here, and the running cluster has none: ",
        ),
    ],
)
def test_what_differs_is_said(redis: SyncRedis, other: ServedModel, sentence: str) -> None:
    keys = Keys()
    TINY.agree(redis.cluster, keys, 1000)
    with pytest.raises(SettingsMismatch, match=sentence):
        other.agree(redis.cluster, keys, 1000)
    # The same model from another folder is the same model, and whoever was refused has changed nothing.
    ServedModel("/elsewhere/tiny", "00aa", 160, "70, 1", "on").agree(redis.cluster, keys, 1000)
    assert redis.cluster.execute_command("HGET", keys.served_model, "model") == b"/models/tiny"


def test_it_holds_while_a_worker_lives(redis: SyncRedis) -> None:
    keys = Keys()
    first, second = WorkerId("w1"), WorkerId("w2")
    leases = {name: WorkerLease(redis.cluster, keys, name, 60_000) for name in (first, second)}
    other = ServedModel("large", "00bb", 160, "70, 1", "on")
    TINY.agree(redis.cluster, keys, 60_000)
    assert redis.cluster.execute_command("PTTL", keys.served_model) > 100_000
    for lease in leases.values():
        lease.renew()
    leases[first].release()
    leave(redis.cluster, keys, first)
    with pytest.raises(SettingsMismatch):
        other.agree(redis.cluster, keys, 1000)
    leases[second].release()
    leave(redis.cluster, keys, second)
    other.agree(redis.cluster, keys, 1000)


@pytest.mark.parametrize(
    "languages", [Languages(("en-US", "de-DE"), prompted=True, letters="a\u00e4\U0001f980"), ENGLISH, UNKNOWN]
)
async def test_ingresses_read_the_languages(redis: SyncRedis, redis_url: str, languages: Languages) -> None:
    keys = Keys()
    reader = AsyncRedis(RedisServers.parse((redis_url,)))
    try:
        client = PipelinedCommands(reader, 0)
        assert await served_languages(client, keys) == UNKNOWN
        TINY.agree(redis.cluster, keys, 1000)
        redis.cluster.execute_command(
            "HDEL", keys.served_model, "languages", "prompted", "letters"
        )  # an older release
        assert await served_languages(client, keys) == UNKNOWN
        names, prompted = ",".join(languages.names), "on" if languages.prompted else "off"
        told = replace(TINY, languages=names, prompted=prompted, letters=languages.letters)
        told.agree(redis.cluster, keys, 1000)
        assert await served_languages(client, keys) == languages
        # Releases may differ in what they know of the same weights: the first one's word holds.
        replace(TINY, languages="fr", prompted="off").agree(redis.cluster, keys, 1000)
        assert await served_languages(client, keys) == languages
    finally:
        await reader.close()


async def test_another_model_is_refused_until_the_first_is_gone(stack: Stack) -> None:
    first = stack.worker("w-1", chunk_ms=160)
    refused = stack.worker("w-2", chunk_ms=320, ready=False)
    assert refused.wait() == 2
    assert "--chunk-ms is 320 here, and the running cluster has 160" in refused.log_text()
    assert "Traceback" not in refused.log_text()
    same = stack.worker("w-3", chunk_ms=160)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert stack.worker("w-4", chunk_ms=320, ready=False).wait() == 2
    same.send(signal.SIGTERM)
    assert same.wait() == 0
    ingress = stack.ingress()
    stack.worker("w-5", chunk_ms=320)
    pcm = noise(1.6)
    assert (await transcribe(ingress.tcp_url, pcm))[-1].text == expected_text(pcm, chunk_ms=320)


async def test_a_worker_whose_cluster_went_on_to_another_model_ends(stack: Stack) -> None:
    """It was frozen for so long that its lease and the model's key had lapsed."""
    worker = stack.worker("w-1", chunk_ms=160)
    stack.client.hset("px:{0}:model", "chunk_ms", 320)
    assert worker.wait() == 1
    assert "--chunk-ms is 160 here, and the running cluster has 320" in worker.log_text()


async def test_a_change_of_model_is_a_second_cluster_and_a_drain(stack: Stack, tmp_path: Path) -> None:
    """As docs/operations.md has it: another database of the same server, and no stream is lost or cut."""
    old_worker, old_ingress = stack.worker("w-old", chunk_ms=160), stack.ingress("i-old", drain_timeout_s=90)
    second = Stack(f"{stack.url}{'&' if '?' in stack.url else '?'}db=1", tmp_path)
    try:
        pcm = noise(3.2)
        running = await connect(old_ingress.tcp_url, timeouts=TIMEOUTS)
        await running.send(pcm[:32_000])
        await anext(running.results())
        second.worker("w-new", chunk_ms=320)
        new_ingress = second.ingress("i-new")
        # New clients go to the new cluster, while the old one ends what it has.
        assert (await transcribe(new_ingress.tcp_url, pcm))[-1].text == expected_text(pcm, chunk_ms=320)
        old_ingress.send(signal.SIGTERM)
        await running.send(pcm[32_000:])
        await running.finish()
        assert (await running.final()).text == expected_text(pcm)
        await running.close()
        assert old_ingress.wait() == 0
        old_worker.send(signal.SIGTERM)
        assert old_worker.wait() == 0
        assert stack.client.zcard("px:{0}:workers") == 0
        assert (await transcribe(new_ingress.tcp_url, pcm))[-1].text == expected_text(pcm, chunk_ms=320)
    finally:
        second.close()
        client = raw_client(second.url)
        client.flushdb()
        client.close()


@pytest.mark.parametrize("module", ["gpu_worker", "ingress"])
async def test_a_process_of_another_layout_is_refused(stack: Stack, tmp_path: Path, module: str) -> None:
    """The processes of the release before wrote results otherwise (layout 2): neither reads the other's."""
    stack.client.hset("px:{0}:conf", mapping={"layout_version": LAYOUT_VERSION - 1, "shards": 1})
    stack.client.pexpire("px:{0}:conf", 60_000)
    register, flag = {
        "gpu_worker": ("px:{0}:workers", "--worker-id"),
        "ingress": ("px:{0}:ingresses", "--ingress-id"),
    }[module]
    flags = (
        {"backend": "null"}
        if module == "gpu_worker"
        else {"port": free_ports(1)[0], "ws_port": 0, "status_port": 0}
    )
    log = tmp_path / "process.log"
    with ServiceProcess(module, stack.url, flag, "p1", register, log, flags) as process:
        assert process.wait() == 2
        assert "layout version" in process.log_text()
        assert str(LAYOUT_VERSION - 1) in process.log_text()
        assert "Traceback" not in process.log_text()
    assert stack.client.hget("px:{0}:conf", "layout_version") == str(LAYOUT_VERSION - 1).encode()
