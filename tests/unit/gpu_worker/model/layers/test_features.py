"""The streaming mel front end against `torch.stft` over the whole recording."""

from __future__ import annotations

import pytest
import torch

from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import UNKNOWN_END
from gpu_worker.model.layers.features import MelFrontEnd
from tests.oracle.models import GO_FORWARD, JFK, offline, speech, tiny


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(("name", "num_samples"), [(JFK, 30_000), (GO_FORWARD, 20_011), (GO_FORWARD, 901)])
def test_mel_equals_offline(name: str, num_samples: int, frames: int) -> None:
    loaded = tiny()
    front_end = MelFrontEnd(loaded.config, loaded.weights, torch.device("cpu"))
    clock = ChunkClock(160, 200, 8, frames)
    samples = torch.tensor(speech(name)[:num_samples])
    tail = torch.zeros(1, front_end.tail_samples)
    got = []
    for start in range(0, clock.total_frames(num_samples), frames):
        index = 1280 * (start - 1) + 200 + torch.arange(1280 * frames)
        inside = (index >= 0) & (index < num_samples)
        audio = torch.where(inside, samples[index.clamp(0, num_samples - 1)], 0.0).unsqueeze(0)
        is_last = start + frames >= clock.total_frames(num_samples)
        total = torch.tensor([num_samples if is_last else UNKNOWN_END])
        mel, tail = front_end.run(tail, audio, torch.tensor([start]), total, edges=start == 0 or is_last)
        got.append(mel[0])
    mel = torch.cat(got)
    expected = offline(name, (70, 1), num_samples).mel
    before, after = mel[:7], mel[7 + len(expected) :]
    assert not before.any(), "frames before the stream's first are zero"
    assert not after.any(), "frames past the stream's end are zero"
    torch.testing.assert_close(mel[7 : 7 + len(expected)], expected, atol=1e-4, rtol=0)


def test_rows_do_not_touch_each_other() -> None:
    loaded = tiny()
    front_end = MelFrontEnd(loaded.config, loaded.weights, torch.device("cpu"))
    audio = torch.tensor(speech(JFK)[: 3 * 2560]).view(3, 2560)
    tail = torch.randn(3, front_end.tail_samples) * 0.1
    start, total = torch.tensor([0, 4, 9]), torch.tensor([UNKNOWN_END, UNKNOWN_END, 9 * 1280 + 700])
    together, tails = front_end.run(tail, audio, start, total, edges=True)
    for row in range(3):
        one = slice(row, row + 1)
        alone, own_tail = front_end.run(tail[one], audio[one], start[one], total[one], edges=True)
        assert torch.allclose(together[one], alone, atol=1e-5)
        assert torch.equal(tails[one], own_tail)
