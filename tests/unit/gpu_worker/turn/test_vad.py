"""silero-vad over slots: equal to the package's own model, whatever the chunks and the batch mates."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpu_worker.turn.outcome import WINDOW_SAMPLES
from gpu_worker.turn.vad import EXPORT_FLOATS, SileroVad

GOLDEN = Path(__file__).parents[3] / "golden" / "turn" / "silero.safetensors"
RECORDINGS = ("goforward", "jfk", "sense_and_sensibility_01_austen_64kb-0880")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def golden() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    tensors = load_file(GOLDEN)
    return {
        name: (tensors[f"{name}.samples"].float() / 32768, tensors[f"{name}.probs"]) for name in RECORDINGS
    }


def run_alone(samples: torch.Tensor, sizes: list[int], slot: int = 1) -> torch.Tensor:
    """Probabilities of one recording fed in chunks of the given sizes, over and over."""
    vad = SileroVad(num_slots=3)
    probs = []
    position = turn = 0
    while position < len(samples):
        chunk = samples[position : position + sizes[turn % len(sizes)]]
        probs_BW, num_windows_B = vad.run(chunk[None], torch.tensor([len(chunk)]), torch.tensor([slot]))
        # Those that are complete at the chunk's end and were not at its start.
        end = position + len(chunk)
        assert num_windows_B.tolist() == [end // WINDOW_SAMPLES - position // WINDOW_SAMPLES]
        probs.append(probs_BW[0, : int(num_windows_B[0])])
        position = end
        turn += 1
    return torch.cat(probs)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("sizes", [[512], [1280], [1, 511, 700], [17920], [2560, 100]])
def test_equals_the_package_for_any_chunks(
    golden: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str, sizes: list[int]
) -> None:
    samples, expected = golden[name]
    assert expected.max() > 0.9  # speech is in it, so that equality says something
    probs = run_alone(samples, sizes)
    torch.testing.assert_close(probs, expected, atol=2e-5, rtol=0)


def test_batched_equals_alone(golden: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """70 streams of random offsets and chunk sizes, over more than one tile of rows."""
    generator = torch.Generator().manual_seed(7)
    num_streams = 70
    recordings = [golden[RECORDINGS[index % 3]][0] for index in range(num_streams)]
    offsets = torch.randint(0, 8000, (num_streams,), generator=generator).tolist()
    streams = [
        recording[offset : offset + 24_000] for recording, offset in zip(recordings, offsets, strict=True)
    ]
    vad = SileroVad(num_slots=num_streams + 1)
    slots = torch.randperm(num_streams, generator=generator)
    got: list[list[float]] = [[] for _ in streams]
    positions = [0] * num_streams
    while any(position < len(stream) for position, stream in zip(positions, streams, strict=True)):
        sizes = torch.randint(0, 2561, (num_streams,), generator=generator).tolist()
        chunks = [
            stream[position : position + size]
            for stream, position, size in zip(streams, positions, sizes, strict=True)
        ]
        rows = torch.full((num_streams + 2, 2560), float("nan"))  # what is past a row's count is not read
        counts = torch.zeros(num_streams + 2, dtype=torch.int32)
        for row, chunk in enumerate(chunks):
            rows[row, : len(chunk)] = chunk
            counts[row] = len(chunk)
        padded_slots = torch.cat([slots, torch.tensor([num_streams, num_streams])])
        probs_BW, num_windows_B = vad.run(rows, counts, padded_slots)
        for row in range(num_streams):
            got[row] += probs_BW[row, : int(num_windows_B[row])].tolist()
            positions[row] += len(chunks[row])
    for stream, probs in zip(streams, got, strict=True):
        alone = run_alone(stream, [1280])
        torch.testing.assert_close(torch.tensor(probs), alone, atol=1e-6, rtol=0)


def test_a_slot_taken_anew_holds_nothing_of_its_last_stream(
    golden: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    samples, expected = golden["goforward"]
    other = golden["jfk"][0]
    vad = SileroVad(num_slots=2)
    slot = torch.tensor([0])
    vad.run(other[None, :5000], torch.tensor([5000]), slot)
    vad.reset(0)
    probs, _ = vad.run(samples[None], torch.tensor([len(samples)]), slot)
    torch.testing.assert_close(probs[0], expected, atol=2e-5, rtol=0)


def test_goes_on_from_an_export_in_another_slot(
    golden: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    samples, _ = golden["jfk"]
    first, second = SileroVad(num_slots=2), SileroVad(num_slots=5)
    head, tail = samples[:20_001], samples[20_001:50_000]
    first.run(head[None], torch.tensor([len(head)]), torch.tensor([1]))
    second.import_slot(4, first.export_slot(1))
    expected, _ = first.run(tail[None], torch.tensor([len(tail)]), torch.tensor([1]))
    got, _ = second.run(tail[None], torch.tensor([len(tail)]), torch.tensor([4]))
    assert torch.equal(got, expected)
    with pytest.raises(ValueError, match=str(EXPORT_FLOATS)):
        second.import_slot(0, torch.zeros(EXPORT_FLOATS - 1))
    for count in (-1.0, float(WINDOW_SAMPLES), float("nan"), float("inf")):
        wrong = first.export_slot(1)
        wrong[0] = count
        with pytest.raises(ValueError, match="samples of a window"):
            second.import_slot(0, wrong)


def test_a_row_without_samples_leaves_its_slot_alone() -> None:
    vad = SileroVad(num_slots=2)
    noise = torch.randn(1, 2000, generator=torch.Generator().manual_seed(1))
    vad.run(noise, torch.tensor([2000]), torch.tensor([0]))
    before = vad.export_slot(0)
    probs, num_windows = vad.run(noise, torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(vad.export_slot(0), before)
    assert num_windows.tolist() == [0]
    assert not probs.any()
