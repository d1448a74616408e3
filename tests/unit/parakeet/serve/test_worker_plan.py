"""How many workers `serve` starts, on which devices, with how many threads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.process.machine import Machine
from common.settings import FLAGS, parse
from common.settings.values import Choice
from parakeet.serve import worker_plan
from parakeet.serve.worker_plan import check_device, count_gpus, plan_workers

GB = 1 << 30
PLENTY = 512 * GB


def test_the_memory_of_every_model_size_is_known() -> None:
    (sizes,) = (flag.kind for flag in FLAGS if flag.name == "model_size")
    assert isinstance(sizes, Choice)
    assert set(worker_plan._WEIGHTS_MB) == set(worker_plan._STREAM_MB) == set(sizes.words)


@pytest.mark.parametrize(
    ("argv", "num_gpus", "num_cores", "expected"),
    [
        # On CPU: a worker a core, four at most. Of a share of several cores, one is not for PyTorch.
        ([], 0, 1, [("auto", 1)]),
        ([], 0, 2, [("auto", 1)] * 2),
        ([], 0, 3, [("auto", 1)] * 3),
        ([], 0, 4, [("auto", 1)] * 4),
        ([], 0, 8, [("auto", 1)] * 4),
        ([], 0, 16, [("auto", 3)] * 4),
        (["--num-workers", "1"], 0, 8, [("auto", 7)]),
        (["--num-workers", "3"], 0, 8, [("auto", 1)] * 3),
        (["--num-workers", "4"], 0, 2, [("auto", 1)] * 4),
        (["--num-workers", "2", "--num-threads", "5"], 0, 8, [("auto", 5)] * 2),
        (["--device", "cpu"], 0, 4, [("cpu", 1)] * 4),
        (["--num-workers", "0"], 0, 4, []),
        (["--backend", "null"], 0, 8, [("auto", 7)]),
        # On GPUs: a worker each.
        ([], 1, 8, [("auto", None)]),
        ([], 2, 8, [("cuda:0", None), ("cuda:1", None)]),
        (["--device", "cuda"], 2, 8, [("cuda:0", None), ("cuda:1", None)]),
        (["--num-workers", "3"], 2, 8, [("cuda:0", None), ("cuda:1", None), ("cuda:0", None)]),
        (["--num-workers", "2"], 1, 8, [("auto", None)] * 2),
        (["--device", "cuda:1"], 2, 8, [("cuda:1", None)]),
    ],
)
def test_workers_by_devices_and_cores(
    argv: list[str], num_gpus: int, num_cores: int, expected: list[tuple[str, int | None]]
) -> None:
    planned = plan_workers(parse("serve", argv, {}), num_gpus, Machine(num_cores, PLENTY))
    assert [(worker.device, worker.num_threads) for worker in planned] == expected


@pytest.mark.parametrize(
    ("argv", "num_gpus", "num_cores", "expected"),
    [
        (["--max-num-streams", "8000"], 1, 16, [4]),
        (["--max-num-streams", "12000"], 1, 16, [4]),
        (["--max-num-streams", "100"], 1, 16, [1]),
        (["--max-num-streams", "3000"], 1, 16, [2]),
        (["--max-num-streams", "8000"], 1, 4, [1]),
        (["--max-num-streams", "12000"], 1, 128, [4]),
        (["--max-num-streams", "12000"], 4, 64, [4] * 4),
        (["--max-num-streams", "12000", "--num-workers", "2"], 1, 16, [2] * 2),
        (["--max-num-streams", "12000", "--device", "cuda:1"], 2, 16, [4]),
        (["--max-num-streams", "12000", "--lanes", "3"], 1, 16, [3]),
        (["--max-num-streams", "12000", "--lanes", "1"], 1, 16, [1]),
        (["--max-num-streams", "12000"], 0, 16, [1] * 4),
        (["--max-num-streams", "12000", "--device", "cpu"], 1, 16, [1] * 4),
        (["--max-num-streams", "12000", "--backend", "null"], 1, 16, [1]),
    ],
)
def test_lanes_by_streams_and_cores(
    argv: list[str], num_gpus: int, num_cores: int, expected: list[int]
) -> None:
    planned = plan_workers(parse("serve", argv, {}), num_gpus, Machine(num_cores, PLENTY))
    assert [worker.lanes for worker in planned] == expected


def test_no_lanes_are_chosen_where_they_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, machine = parse("serve", ["--max-num-streams", "12000"], {}), Machine(16, PLENTY)
    monkeypatch.setattr(worker_plan, "can_have_lanes", lambda: False)
    assert [worker.lanes for worker in plan_workers(settings, 1, machine)] == [1]


@pytest.mark.parametrize(
    ("argv", "free_gb", "num_workers"),
    [
        (["--model-size", "tiny"], 0.2, 1),
        (["--model-size", "tiny"], 2, 2),
        (["--model-size", "tiny"], 4, 4),
        (["--model-size", "large"], 8, 1),
        (["--model-size", "large"], 16, 2),
        (["--model-size", "large", "--max-num-streams", "1000"], 16, 1),
        (["--model-size", "large", "--max-num-streams", "1000", "--num-workers", "3"], 16, 3),
        (["--model", "owner/unknown"], 16, 2),
    ],
)
def test_no_more_workers_than_memory_allows(argv: list[str], free_gb: float, num_workers: int) -> None:
    machine = Machine(num_cores=16, free_bytes=int(free_gb * GB))
    assert len(plan_workers(parse("serve", argv, {}), 0, machine)) == num_workers


@pytest.mark.parametrize(("dtype", "num_workers"), [("F32", 4), ("BF16", 4), ("F16", 3), ("damaged", 4)])
def test_weights_count_as_they_are_in_memory(tmp_path: Path, dtype: str, num_workers: int) -> None:
    """500 million weights: 2 GB in float32, 3 GB where they are kept as halves as well."""
    tensor = {"dtype": dtype, "shape": [500, 1_000_000], "data_offsets": [0, 0]}
    header = json.dumps({"__metadata__": {}, "w": tensor}).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header if dtype != "damaged" else b"{")
        file.truncate(2_000_000_000)  # a hole
    machine = Machine(num_cores=16, free_bytes=int(24.5 * GB))
    settings = parse("serve", ["--model", str(tmp_path), "--worker-max-streams", "100"], {})
    assert len(plan_workers(settings, 0, machine)) == num_workers


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
