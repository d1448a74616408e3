"""How many workers are started, on which devices, and what is checked before anything starts."""

from __future__ import annotations

import re
import socket
from dataclasses import replace

import pytest

from common.errors import SettingsError
from common.settings import parse
from parakeet.readiness import PortTaken, check_port_free, wait_until_listening
from parakeet.supervisor import check_device, count_gpus, plan_workers


@pytest.mark.parametrize(
    ("argv", "num_gpus", "num_cores", "expected"),
    [
        ([], 0, 8, [("auto", 8)]),
        (["--num-workers", "3"], 0, 8, [("auto", 2)] * 3),
        (["--num-workers", "4"], 0, 2, [("auto", 1)] * 4),
        (["--num-workers", "2", "--num-threads", "5"], 0, 8, [("auto", 5)] * 2),
        ([], 1, 8, [("auto", None)]),
        ([], 2, 8, [("cuda:0", None), ("cuda:1", None)]),
        (["--device", "cuda"], 2, 8, [("cuda:0", None), ("cuda:1", None)]),
        (["--num-workers", "3"], 2, 8, [("cuda:0", None), ("cuda:1", None), ("cuda:0", None)]),
        (["--device", "cuda:1"], 2, 8, [("cuda:1", None)]),
        (["--device", "cpu"], 0, 4, [("cpu", 4)]),
        (["--num-workers", "0"], 0, 4, []),
    ],
)
def test_one_worker_a_gpu_or_one_on_cpu(
    argv: list[str], num_gpus: int, num_cores: int, expected: list[tuple[str, int | None]]
) -> None:
    planned = plan_workers(parse("serve", argv, {}), num_gpus, num_cores)
    assert [(worker.device, worker.num_threads) for worker in planned] == expected


def test_no_gpu_is_looked_for_on_cpu() -> None:
    assert count_gpus("cpu") == 0


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_a_device_that_is_there_is_taken(device: str) -> None:
    check_device(device, 2)


@pytest.mark.parametrize(
    ("device", "num_gpus", "there"),
    [
        ("cuda", 0, "no CUDA device is"),
        ("cuda:0", 0, "no CUDA device is"),
        ("cuda:1", 1, "only cuda:0 is"),
        ("cuda:9", 4, "cuda:0 to cuda:3 are"),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, num_gpus: int, there: str) -> None:
    sentence = f"--device got '{device}', but takes auto, cpu or a device that is there: {there}."
    with pytest.raises(SettingsError, match=f"^{re.escape(sentence)}$"):
        check_device(device, num_gpus)


def test_a_port_in_use_is_named_with_its_flag(free_port: int) -> None:
    check_port_free("127.0.0.1", free_port, "--port")
    check_port_free("127.0.0.1", 0, "--port")
    with socket.socket() as other:
        # As another server's ingress processes listen.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", free_port))
        other.listen()
        with pytest.raises(PortTaken, match=f"--ws-port got {free_port}, but 127.0.0.1:{free_port} cannot"):
            check_port_free("127.0.0.1", free_port, "--ws-port")
        assert wait_until_listening("0.0.0.0", free_port, 5.0)
    assert not wait_until_listening("127.0.0.1", free_port, 0.1)


def test_children_differ_from_the_settings_of_serve_in_their_names_alone() -> None:
    settings = parse("serve", ["--model-size", "tiny", "--port", "7000"], {})
    assert replace(settings.worker, worker_id="") == replace(
        parse("worker", ["--model-size", "tiny"], {}), worker_id="", redis_url=()
    )
    assert replace(settings.ingress, ingress_id="") == replace(
        parse("ingress", ["--port", "7000"], {}), ingress_id="", redis_url=()
    )
