"""What happens on connections shows in the metrics, once."""

from __future__ import annotations

import base64
import socket
import struct
import time

import pytest

from common.errors import NoFreeStream, NoWorker
from common.messages import Result
from common.monitoring.metrics import IngressMetrics
from ingress.meter import Meter
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until

pytestmark = pytest.mark.one_loop

SAMPLES = base64.b64encode(bytes(3200)).decode()


async def test_a_stream_from_its_slot_to_its_end() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        metrics = harness.metrics
        assert metrics.admissions["admitted"] == 1
        await client.send({"type": "audio", "data": SAMPLES})
        await client.send({"type": "audio", "data": SAMPLES, "final": True})
        await client.receive_all()
        await client.close()
        await wait_until(lambda: backplane.link.code == "final")
        assert metrics.audio_seconds == pytest.approx(0.2)
        assert metrics.results["final"] == 1
        assert metrics.received_bytes["tcp"] > 2 * len(SAMPLES)
        assert metrics.sent_bytes["tcp"] > 0
        assert metrics.received_bytes["websocket"] == 0
        assert sum(metrics.final_latency_seconds.counts) == 1


@pytest.mark.parametrize("recording", [False, True])
async def test_a_recording_has_no_latency_of_results(
    monkeypatch: pytest.MonkeyPatch, recording: bool
) -> None:
    """It is sent as fast as it can be: its first results are as late as it is long."""
    monkeypatch.setattr("ingress.meter._SAMPLED_EVERY", 1)
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "config", "recording": recording})
        await client.send({"type": "audio", "data": SAMPLES})
        await client.send({"type": "audio", "data": SAMPLES, "final": True})
        await client.receive_all()
        await client.close()
        await wait_until(lambda: harness.metrics.results["final"] == 1)
        assert harness.metrics.results["partial"] >= 1
        assert bool(sum(harness.metrics.result_latency_seconds.counts)) != recording


async def test_an_error_and_the_end_that_it_makes() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "audio", "data": SAMPLES})
        await client.send(b"nonsense\n")
        await client.receive_all()
        await client.close()
        metrics = harness.metrics
        await wait_until(lambda: backplane.link.code == "bad_json")
        assert metrics.errors["bad_json"] == 1
        assert sum(metrics.errors.values()) == 1


async def test_a_client_that_leaves_is_no_error() -> None:
    backplane = ScriptedBackplane()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send({"type": "audio", "data": SAMPLES})
        await wait_until(lambda: harness.metrics.audio_seconds > 0)
        reset_when_closed = struct.pack("ii", 1, 0)
        client.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, reset_when_closed
        )
        client.writer.transport.abort()
        await wait_until(lambda: backplane.link.code == "client_gone")
        assert sum(harness.metrics.errors.values()) == 0


@pytest.mark.parametrize(("refusal", "outcome"), [(NoFreeStream(), "full"), (NoWorker(), "no_worker")])
async def test_a_slot_that_is_not_had(refusal: NoFreeStream | NoWorker, outcome: str) -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = refusal
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive_all()
        await client.close()
        assert harness.metrics.admissions[outcome] == 1
        assert harness.metrics.admissions["admitted"] == 0


def result(acked: int, text: str = "go") -> Result:
    return Result(text, (), (), False, "speech", "running", 1, acked)


def test_latency_is_from_the_arrival_of_the_last_sample_that_a_result_covers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    metrics = IngressMetrics()
    meters = [Meter(metrics, "tcp") for _ in range(16)]
    (meter,) = (one for one in meters if one._arrivals is not None)
    for end in (1600, 3200, 4800):
        clock[0] += 0.1
        meter.audio(0.1, end)
    clock[0] = 0.5
    meter.result(result(3200))  # came at 0.2
    assert metrics.result_latency_seconds.sum == pytest.approx(0.3)
    clock[0] = 0.6
    meter.result(result(4000))  # a part of what came at 0.3
    assert metrics.result_latency_seconds.sum == pytest.approx(0.6)
    meter.result(result(4800))
    assert sum(metrics.result_latency_seconds.counts) == 3
    assert metrics.first_result_seconds.sum == pytest.approx(0.4)
