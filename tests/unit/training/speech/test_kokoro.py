"""The synthesiser in plain PyTorch: rows do not see their batch, manners do what they say."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from training.speech.kokoro.inventory import Inventory
from training.speech.kokoro.layers import Span
from training.speech.kokoro.model import SAMPLES_PER_FRAME, Kokoro, Manner, _moved
from training.speech.kokoro.onnx_weights import _module_of
from training.speech.kokoro.vocoder import Source

CPU = torch.device("cpu")


@cache
def model() -> Kokoro:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Kokoro().eval()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise in the source: what is left must be the same every time."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def spoken(lengths: list[int], speed: float = 8.0) -> tuple[Tensor, Tensor]:
    """Rows of random symbols, fast: without training every phoneme lasts half a second."""
    symbols = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(lengths):
        symbols[row, 1 : length - 1] = torch.randint(16, 170, (length - 2,), generator=generator)
    style = 0.2 * torch.randn(len(lengths), 256, generator=torch.Generator().manual_seed(2))
    manner = replace(Manner.plain(len(lengths), CPU), speed_B=torch.full((len(lengths),), speed))
    samples, counts = model()(symbols, torch.tensor(lengths), style, manner)
    return samples, counts


SHORT, LONG = 6, 11


def symbols_of(rows: list[int]) -> tuple[Tensor, Span]:
    symbols = torch.zeros(len(rows), max(rows), dtype=torch.int64)
    for row, length in enumerate(rows):
        symbols[row, :length] = torch.arange(16, 16 + length)
    return symbols, Span(torch.tensor(rows), max(rows))


def first_row(part: str, rows: list[int]) -> Tensor:
    """What a part of the model makes of the first row, its valid frames alone."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 640, LONG, generator=generator)[: len(rows), :, : max(rows)]
    style = torch.randn(2, 128, generator=generator)[: len(rows)]
    symbols, span = symbols_of(rows)
    whole = model()
    with torch.no_grad():
        if part == "albert":
            out: Tensor = whole.bert(symbols, span.mask_B1T[:, 0].bool())[0, :SHORT]
        elif part == "sounds":
            out = whole.text_encoder(symbols, span)[0, :, :SHORT]
        elif part == "durations":
            context = x[:, :512].transpose(1, 2)
            out = whole.predictor.durations(context, style, span)[1][0, :SHORT]
        elif part == "contours":
            frames = span.cut(x).transpose(1, 2)
            out = torch.stack(whole.predictor.contours(frames, style, span.lengths_B))[:, 0, : 2 * SHORT]
        else:
            block = whole.decoder.generator.resblocks[1]
            out = block(span.cut(x[:, :256]), style, span)[0, :, :SHORT]
        return out


@pytest.mark.parametrize("part", ["albert", "sounds", "durations", "contours", "vocoder block"])
def test_a_row_does_not_see_its_batch(part: str) -> None:
    alone, padded = first_row(part, [SHORT]), first_row(part, [SHORT, LONG])
    assert float(alone.std()) > 1e-3
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=1e-4)


def test_lengths_of_a_batch() -> None:
    alone, count = spoken([SHORT])
    batch, counts = spoken([SHORT, LONG])
    assert int(count[0]) == int(counts[0]) == alone.shape[1]
    assert int(counts[1]) == batch.shape[1]
    assert int(counts[1]) % SAMPLES_PER_FRAME == 0


def test_speed_divides_durations() -> None:
    _, count = spoken([6], speed=5.0)
    _, fast = spoken([6], speed=10.0)
    assert 0.35 < int(fast[0]) / int(count[0]) < 0.7


def test_pitch_moves_where_there_is_pitch() -> None:
    pitch = torch.tensor([[0.0, 100.0, 140.0, 0.2, 120.0]])
    plain = Manner.plain(1, CPU)
    torch.testing.assert_close(_moved(pitch, plain), pitch)
    flat = replace(plain, range_B=torch.tensor([0.0]), pitch_B=torch.tensor([2.0]))
    torch.testing.assert_close(_moved(pitch, flat), torch.tensor([[0.0, 240.0, 240.0, 0.2, 240.0]]))
    lively = replace(plain, range_B=torch.tensor([2.0]))
    torch.testing.assert_close(_moved(pitch, lively), torch.tensor([[0.0, 80.0, 160.0, 0.2, 120.0]]))


def test_breath_is_noise_in_voiced_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    source = model().decoder.generator.m_source
    pitch = torch.tensor([[100.0, 100.0, 0.0]])
    with torch.no_grad():
        plain = source(pitch, None)
        breathy = source(pitch, Source(torch.tensor([0.5]), torch.tensor([0.0])))
    assert float((breathy - plain)[0, :600].abs().min()) > 1e-4
    torch.testing.assert_close(breathy[0, 600:], plain[0, 600:])


def test_alphabet() -> None:
    inventory = Inventory.of_kokoro()
    assert inventory.num_labels == 92
    symbols = inventory.symbols("ɡˈO, \x00fˈɔɹ!")
    assert len(symbols) == len("ɡˈO, fˈɔɹ!")
    labels = inventory.labels(symbols)
    assert len(labels) == len("ɡOfɔɹ")
    assert all(0 <= label < 92 for label in labels)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/encoder/bert/encoder/albert_layer_groups.0/ffn", "bert.encoder.albert_layer_groups.0.ffn"),
        ("/encoder/F0.1/conv1", "predictor.F0.1.conv1"),
        ("/encoder/shared", "predictor.shared"),
        ("/decoder/decoder/decode.0/norm1", "decoder.decode.0.norm1"),
        ("/encoder/text_encoder/cnn.0/cnn.0.0", "text_encoder.cnn.0.0"),
    ],
)
def test_names_of_the_export(path: str, name: str) -> None:
    assert _module_of(path) == name
