"""Lanes over captured graphs: memory that processes share is read by the device, and texts are the same."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.steps import AllocateRings, RingMemory
from gpu_worker.kernels.gather_samples import gather_samples
from gpu_worker.lanes.segment import SharedMemory
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.steps import device_rings
from gpu_worker.steps.device_rings import DeviceRings
from gpu_worker.steps.factory import make_model_engine
from tests.contracts.engine_contract import step_until_idle
from tests.device.lane_stack import lane_stack
from tests.oracle.models import ALL_RECORDINGS, speech

NUM_LANES = 2
DEVICE = torch.device("cuda:0")
CONFIG = EngineConfig(
    num_slots=16, context=(70, 1), page_frames=8, batch_sizes=BatchSizes(16, 16, 16), turn_detection=True
)
_WRITES = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
memory[4 * 8 : 4 * 8 + 16] = b"".join(n.to_bytes(2, "little") for n in range(1, 9))
"""


@pytest.fixture(autouse=True)
def nothing_stays_pinned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that is unmapped while it is pinned leaves its addresses to CUDA, which pins no others there.

    A group pins its lanes' memory once, and keeps it for as long as its process lives.
    """
    pinned: list[torch.Tensor] = []
    real = device_rings.register

    def noted(tensor: torch.Tensor, device: torch.device) -> int:
        status = real(tensor, device)
        if not status:
            pinned.append(tensor)
        return status

    monkeypatch.setattr(device_rings, "register", noted)
    yield
    torch.cuda.synchronize()
    for tensor in pinned:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        assert not int(runtime.cudaHostUnregister(tensor.data_ptr()))


@cache
def shared(name: str) -> Callable[[int, int], RingMemory]:
    """Makes rings as a group does."""
    kept: list[SharedMemory] = []

    def allocate(num_slots: int, num_samples: int) -> RingMemory:
        kept.append(SharedMemory.create(name, 4 * (num_slots + 1) * num_samples))
        return RingMemory(kept[-1].array("float32", (num_slots + 1, num_samples)))

    return allocate


def gathered(rings: DeviceRings, slot: int) -> list[float]:
    """What a kernel reads of a slot's pcm16, times 32,768."""
    slots, zero, end = (torch.tensor([n], dtype=torch.int32, device=DEVICE) for n in (slot, 0, 8))
    found = gather_samples(rings.on_device, slots, zero, zero, end, 8)
    return [round(32_768 * value) for value in found[0].tolist()]


def test_a_kernel_reads_what_another_process_has_written() -> None:
    memory = SharedMemory.create("test-rings", mmap.PAGESIZE)
    rings = DeviceRings(
        3, 8, DEVICE, lambda slots, samples: RingMemory(memory.array("float32", (slots + 1, samples)))
    )
    assert not rings.copies, "this machine cannot pin memory that processes share"
    assert gathered(rings, 1) == [0] * 8
    command = [sys.executable, "-c", _WRITES, str(memory.fd), str(mmap.PAGESIZE)]
    subprocess.run(command, check=True, pass_fds=(memory.fd,), timeout=60)
    assert gathered(rings, 1) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_error_of_the_registration_disturbs_nothing_behind_it() -> None:
    """Memory that is pinned already cannot be pinned again."""
    tensor = torch.from_numpy(SharedMemory.create("twice", mmap.PAGESIZE).array("float32", (8,)))
    assert device_rings.register(tensor, DEVICE) == 0
    assert device_rings.register(tensor, DEVICE) != 0
    assert torch.ones(4, device=DEVICE).sum().item() == 4
    torch.cuda.synchronize()


@pytest.fixture(params=["pinned", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The rings are read where they are, or copied as where they cannot be pinned."""
    if request.param == "copied":
        monkeypatch.setattr(device_rings, "register", lambda *_: 801)
    name: str = request.param
    return name


def test_lanes_say_what_an_engine_alone_says(way: str) -> None:
    """Both lanes at once, from a thread each as processes would, with steps that are launched ahead."""
    loaded = load_model(None, size="tiny", dtype=torch.float32, device="cuda")
    alone = make_model_engine(loaded, CONFIG)
    expected = said(alone, 0)

    def whole(rings: AllocateRings) -> SpeechEngine:
        assert rings is not None
        return make_model_engine(loaded, replace(CONFIG), rings=shared(way))

    with ExitStack() as stack, ThreadPoolExecutor(NUM_LANES) as pool:
        lanes = stack.enter_context(lane_stack(whole, NUM_LANES, loaded.tokenizer.vocab_size))
        assert lanes.device.shape.overlaps
        engines = [
            SpeechEngine(steps, loaded.tokenizer, turns_of=CONFIG.turn_settings, prompt_of=lambda _: 0)
            for steps in lanes.lanes
        ]
        for found in pool.map(said, engines, range(NUM_LANES)):
            assert found == expected


def said(engine: SpeechEngine, seed: int) -> list[list[str]]:
    """Texts of all recordings, fed in pieces, six streams at once."""
    random = np.random.default_rng(seed)
    audio = [speech(name) for name in ALL_RECORDINGS]
    for number in range(6):
        engine.open(StreamId(number), StreamOptions())
    at = [0] * 6
    outputs: list[StreamOutput] = []
    while any(at[number] < len(audio[number % len(audio)]) for number in range(6)):
        for number in range(6):
            samples = audio[number % len(audio)]
            if at[number] >= len(samples):
                continue
            size = int(random.integers(1, 20_000))
            engine.feed(StreamId(number), samples[at[number] : at[number] + size])
            at[number] += size
            if at[number] >= len(samples):
                engine.finish(StreamId(number))
        outputs += engine.step() if engine.has_work() else []
    outputs += step_until_idle(engine)
    return [[output.text for output in outputs if output.stream == number] for number in range(6)]
