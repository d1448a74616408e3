"""Styles of speakers: those of kokoro-js (npm, Apache-2.0), their mixtures, and styles around these.

A style is 256 numbers: timbre, then prosody. Each voice has one for every length of text.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.speech.kokoro.layers import STYLE_WIDTH

# Voices that are never trained on; they measure the recognition of unknown speakers.
HELD_OUT: Final = ("af_nova", "am_eric", "bf_lily", "bm_lewis", "af_jessica", "am_liam")
_LENGTHS: Final = 510
# No phrase has more phonemes (text/phonemes.py), so half of the numbers are not needed.
_KEPT_LENGTHS: Final = 300
_MEMBER: Final = "package/voices/"


@dataclass(frozen=True, slots=True)
class Mixing:
    """Settings of the draws of training styles.

    Args:
        single: share of rows with one unchanged English voice.
        max_timbre, max_prosody: most voices in a mixture; timbre may be of any language.
        farther: how far beyond a mixture, away from the mean of all voices, a timbre may lie.
        timbre_noise, prosody_noise: the largest noise, in standard deviations between the voices.
        noisy: share of rows with such noise, drawn separately for timbre and prosody.
    """

    single: float = 0.2
    max_timbre: int = 3
    max_prosody: int = 2
    farther: float = 1.5
    timbre_noise: float = 1.2
    prosody_noise: float = 0.7
    noisy: float = 0.6


class Voices:
    """Voices of a package and draws among them.

    Args:
        styles_VLS: styles of each voice for each length of text, [V, L, 256].
        names: of the voices; the first letter is the language, "a" and "b" are English.
        seed: of the draws.
    """

    def __init__(self, styles_VLS: Tensor, names: Sequence[str], seed: int) -> None:
        self.names = tuple(names)
        self._styles = styles_VLS
        self._random = np.random.default_rng(seed)
        held = [index for index, name in enumerate(names) if name in HELD_OUT]
        self._held = held
        self._known = [index for index in range(len(names)) if index not in held]
        self._english = [index for index in self._known if names[index][0] in "ab"]

    @classmethod
    def load(cls, path: Path, seed: int, device: torch.device) -> Voices:
        """Read the file of `convert_voices`."""
        styles = load_file(path)
        names = sorted(styles)
        return cls(torch.stack([styles[name] for name in names]).float().to(device), names, seed)

    def held_out(self, num_phonemes: Sequence[int]) -> Tensor:
        """Return styles [B, 256] of voices that are never trained on, one at random for each row."""
        choice = torch.from_numpy(self._random.choice(self._held, len(num_phonemes)))
        return self._styles[choice, self._at(num_phonemes)]

    def mixed(self, num_phonemes: Sequence[int], mixing: Mixing) -> Tensor:
        """Return styles [B, 256] for training, which hardly ever repeat."""
        num_rows, device = len(num_phonemes), self._styles.device
        timbre = np.zeros((num_rows, len(self.names)), np.float32)
        prosody = np.zeros_like(timbre)
        stretch = np.ones((num_rows, 1), np.float32)
        for row in range(num_rows):
            if self._random.random() < mixing.single:
                timbre[row, self._random.choice(self._english)] = 1.0
                prosody[row] = timbre[row]
                continue
            self._mix(timbre[row], self._known, mixing.max_timbre)
            self._mix(prosody[row], self._english, mixing.max_prosody)
            stretch[row] = self._random.uniform(1.0, mixing.farther)
        styles_VBS = self._styles[:, self._at(num_phonemes)]
        known = styles_VBS[self._known]
        mean, spread = known.mean(0), known.std(0)
        of_timbre = torch.einsum("bv,vbs->bs", torch.from_numpy(timbre).to(device), styles_VBS)
        of_prosody = torch.einsum("bv,vbs->bs", torch.from_numpy(prosody).to(device), styles_VBS)
        of_timbre = mean + (of_timbre - mean) * torch.from_numpy(stretch).to(device)
        style = torch.cat([of_timbre[:, :STYLE_WIDTH], of_prosody[:, STYLE_WIDTH:]], 1)
        return style + self._noise(num_rows, mixing).to(device) * spread

    def _noise(self, num_rows: int, mixing: Mixing) -> Tensor:
        sizes = [
            self._random.uniform(0, largest, num_rows) * (self._random.random(num_rows) < mixing.noisy)
            for largest in (mixing.timbre_noise, mixing.prosody_noise)
        ]
        scale = np.repeat(np.stack(sizes, 1), STYLE_WIDTH, 1)
        return torch.from_numpy((scale * self._random.standard_normal(scale.shape)).astype(np.float32))

    def _mix(
        self, weights: np.ndarray[tuple[int], np.dtype[np.float32]], among: list[int], most: int
    ) -> None:
        count = self._random.integers(1, most + 1)
        chosen = self._random.choice(among, count, replace=False)
        weights[chosen] = self._random.dirichlet(np.full(count, 0.7))

    def _at(self, num_phonemes: Sequence[int]) -> Tensor:
        return torch.tensor([min(count, self._styles.shape[1] - 1) for count in num_phonemes])


def convert_voices(archive: Path, target: Path) -> int:
    """Convert the styles of the package's archive (`npm pack kokoro-js`) to float16; return their number."""
    styles: dict[str, Tensor] = {}
    with tarfile.open(archive) as package:
        for member in package.getmembers():
            if member.name.startswith(_MEMBER) and member.isfile():
                file = package.extractfile(member)
                assert file is not None
                numbers = np.frombuffer(file.read(), np.float32).reshape(_LENGTHS, 2 * STYLE_WIDTH)
                kept = torch.from_numpy(numbers[:_KEPT_LENGTHS].copy())
                styles[Path(member.name).stem] = kept.half()
    if not styles:
        raise ValueError(f"{archive} holds no voices")
    save_file(styles, target)
    return len(styles)
