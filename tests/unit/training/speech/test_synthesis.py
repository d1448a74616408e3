"""Speakers, batches, trimming, and the place in the text, with a model that only beeps."""

from __future__ import annotations

import io
import random
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.data.utterances import read_spoken
from training.speech.kokoro.model import Manner
from training.speech.resampling import ToSixteen
from training.speech.synthesis import Manners, Row, Speaker, batches, plausible, synthesise, trimmed
from training.speech.voices import HELD_OUT, Mixing, Voices, convert_voices
from training.text.phonemes import Phrase, read_phrases, write_phrases

CPU = torch.device("cpu")
NAMES = ("af_bella", "af_nova", "am_adam", "bf_emma", "zf_xiaoni")


def voices(seed: int = 0) -> Voices:
    styles = torch.arange(5.0)[:, None, None] + torch.zeros(5, 510, 256)
    styles += 0.001 * torch.arange(510.0)[None, :, None]
    return Voices(styles, NAMES, seed)


class Beeper(nn.Module):
    """Says each symbol as 100 ms of a tone, after 200 ms of silence; row by row as the real model does."""

    def forward(
        self, symbols: Tensor, lengths: Tensor, style: Tensor, manner: Manner, half: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        assert style.shape == (len(symbols), 256)
        assert manner.speed_B.shape == lengths.shape
        counts = lengths * 2_400 + 9_600
        at = torch.arange(int(counts.max()))
        audio = 0.3 * torch.sin(at * 0.1)[None].repeat(len(symbols), 1)
        audio[(at[None] < 4_800) | (at[None] >= counts[:, None] - 4_800)] = 0.0
        return audio, counts


def speaker() -> Speaker:
    return Speaker(Beeper(), voices(), random.Random(0), CPU, None)  # type: ignore[arg-type]


def test_mixtures_lie_among_the_known_voices_and_held_out_ones_are_never_in() -> None:
    nova = NAMES.index("af_nova")
    plain = Mixing(farther=1.0, noisy=0.0)
    styles = voices().mixed([10] * 400, plain)
    assert styles.shape == (400, 256)
    assert 0.0 <= float(styles.min()) < 0.2
    # Prosody is an English voice's: the fifth voice is not.
    assert float(styles[:, 128:].max()) <= 3.011
    assert 3.5 < float(styles[:, :128].max()) <= 4.011
    single = voices().mixed([10] * 400, Mixing(single=1.0, noisy=0.0))
    assert not ((single[:, 0] - nova - 0.01).abs() < 1e-4).any()
    held = voices().held_out([10] * 50)
    torch.testing.assert_close(held, torch.full((50, 256), nova + 0.01))
    assert NAMES[nova] in HELD_OUT


def test_noise_reaches_beyond_the_voices() -> None:
    styles = voices().mixed([10] * 400, Mixing())
    assert float(styles[:, :128].max()) > 5.0
    assert len(torch.unique(styles[:, 0])) > 350


def test_the_length_of_the_text_chooses_the_style() -> None:
    held = voices().held_out([0, 100, 9_999])
    torch.testing.assert_close(held[:, 0], torch.tensor([1.0, 1.1, 1.509]))


def test_voices_of_a_package(tmp_path: Path) -> None:
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate(NAMES):
            # A style for each length of text: its whole part is the voice, the rest the length.
            styles = (
                np.full((510, 256), number, np.float32) + np.arange(510, dtype=np.float32)[:, None] / 1_024
            )
            data = styles.tobytes()
            member = tarfile.TarInfo(f"package/voices/{name}.bin")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert convert_voices(path, tmp_path / "voices.safetensors") == len(NAMES)
    read = Voices.load(tmp_path / "voices.safetensors", 0, CPU)
    assert read.names == NAMES
    held = read.held_out([5, 299, 450])
    torch.testing.assert_close(held[:, 7], 1.0 + torch.tensor([5.0, 299.0, 299.0]) / 1_024)


def test_an_archive_without_voices_is_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "package.tgz", "w:gz"):
        pass
    with pytest.raises(ValueError, match="holds no voices"):
        convert_voices(tmp_path / "package.tgz", tmp_path / "voices.safetensors")


def test_resampling_keeps_a_tone_and_drops_what_is_above() -> None:
    time_s = torch.arange(24_000) / 24_000
    low, high = (torch.sin(2 * torch.pi * hertz * time_s)[None] for hertz in (1_000, 9_500))
    out = ToSixteen(CPU)(torch.cat([low, high]))[:, :16_000]
    expected = torch.sin(2 * torch.pi * 1_000 * torch.arange(16_000) / 16_000)
    torch.testing.assert_close(out[0, 100:-100], expected[100:-100], atol=5e-3, rtol=0)
    assert float(out[1, 100:-100].abs().max()) < 0.01


def test_trimming() -> None:
    audio = torch.zeros(1, 16_000)
    audio[0, 4_000:8_000] = 0.5
    first, end, peak = trimmed(audio, torch.tensor([16_000]))
    assert int(first[0]) == 4_000 - 4_000 % 160 - 480
    assert 8_000 + 480 <= int(end[0]) <= 8_000 + 800
    assert float(peak[0]) == 0.5


@pytest.mark.parametrize(
    ("seconds", "text", "fits"),
    [(0.5, "yes", True), (0.05, "yes", False), (0.2, "a sentence of many words", False), (3.0, "yes", False),
     (25.0, "x" * 300, False), (2.0, "go forward ten meters", True)],
)  # fmt: skip
def test_plausible(seconds: float, text: str, fits: bool) -> None:
    assert plausible(seconds, text) == fits


def test_batches_hold_rows_of_like_length() -> None:
    rows = [Row(f"r{k}", (1,) * (2 + k % 90), 1.0) for k in range(400)]
    made = list(batches(rows, 60.0, random.Random(0)))
    assert sorted(row.text for batch in made for row in batch) == sorted(row.text for row in rows)
    for batch in made:
        longest = max(row.estimate_s for row in batch)
        assert longest * len(batch) <= 60.0
        assert len(batch) == 1 or longest < 3 * min(row.estimate_s for row in batch) + 1


def phrases(count: int) -> list[Phrase]:
    return [Phrase(f"line {k}", "chat", "us", "ɡˈO fˈɔɹ"[: 3 + k % 5]) for k in range(count)]


def test_phrases_come_back(tmp_path: Path) -> None:
    write_phrases(phrases(7), tmp_path / "text.tsv.xz")
    assert read_phrases(tmp_path / "text.tsv.xz") == phrases(7)


def test_a_session_goes_on_where_the_text_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.speech.synthesis._SORTED_ROWS", 20)
    monkeypatch.setattr("training.speech.synthesis.SHARD_UTTERANCES", 15)
    options = {"deadline": time.monotonic() + 60, "batch_s": 10.0}
    lines = phrases(100)
    row = synthesise(speaker(), lines[:60], tmp_path, first_row=20, **options)  # type: ignore[arg-type]
    assert row == 60
    said = {one.text for one in read_spoken(sorted(tmp_path.glob("*.npy")))}
    assert said == {line.label for line in lines[20:60]}
    assert synthesise(speaker(), lines, tmp_path, first_row=row, **options) == 100  # type: ignore[arg-type]
    said = {one.text for one in read_spoken(sorted(tmp_path.glob("*.npy")))}
    assert said == {line.label for line in lines[20:]}


def test_processes_take_rows_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.speech.synthesis._SORTED_ROWS", 20)
    heard: list[set[str]] = []
    for rank in range(2):
        folder = tmp_path / str(rank)
        deadline = time.monotonic() + 60
        row = synthesise(
            speaker(), phrases(50), folder, first_row=0, deadline=deadline, batch_s=10.0, rank=rank, world=2
        )
        assert row == 80
        heard.append({one.text for one in read_spoken(sorted(folder.glob("*.npy")))})
    assert not heard[0] & heard[1]
    assert heard[0] | heard[1] == {line.label for line in phrases(50)}


def test_manners_stay_in_their_ranges() -> None:
    manners = Manners()
    drawn = manners.draw([1.0] * 2_000, random.Random(0), CPU)
    assert float(drawn.pitch_B.min()) >= 2**-0.35
    assert float(drawn.pitch_B.max()) <= 2**0.35
    assert 0.15 < float((drawn.source.breath_B > 0).float().mean()) < 0.25
    assert float(drawn.range_B.max()) <= manners.liveliest
