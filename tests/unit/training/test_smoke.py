"""The whole way in small, on a CPU: four sentences of tones are learnt, stored, gone on with, and shipped.

With AdamW alone this architecture collapses to a language model here as it does on speech: the smallest place
where the cures can be seen to work.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from gpu_worker.model.loaded_model import LoadedModel
from tests.oracle.models import tiny
from tests.oracle.offline import OfflineOracle
from training.augment.chain import Masking, Warping
from training.checkpoint.checkpoint import Progress, flat_weights, load_checkpoint, save_checkpoint
from training.data.batches import Buckets
from training.data.composition import Composition
from training.data.utterances import RATE, Spoken, Utterances, gathered
from training.export import export_model
from training.model.transducer import TrainingModel
from training.optimiser.flat import FlatParameters
from training.optimiser.optimiser import Optimiser, Rates
from training.optimiser.schedule import Schedule
from training.session.graphs import encoders
from training.session.pace import StepPace
from training.session.processes import Processes
from training.session.trainer import Settings, Trainer

# Every word is a token of its own.
SENTENCES = ("call me back tomorrow", "please hold", "one two three four", "good morning to you")
TOKEN_S = 0.2
SIZES = {"n_layers": 3, "d_model": 64, "n_heads": 2, "subsampling_conv_channels": 16}
HIDDEN = 48
NUM_PHONEMES = 6
PLAN = Composition(
    silent=0.15, single=0.7, long=0.0, usual_s=5.0, max_skipped_s=0.0, slowest=0.95, fastest=1.05
)
SETTINGS = Settings(
    Schedule(warm_up=0.05, short=0.25),
    composition=PLAN,
    buckets=Buckets((200, 640), batch_s=16.0),
    warping=Warping(share=0.0),
    masking=Masking(num_bands=0, num_gaps=2),
    eou_window_frames=3,
    augmented=False,
)
PACE = StepPace(320)
ALONE = Processes(0, 1, torch.device("cpu"))


def tones(tokens: list[int]) -> NDArray[np.int16]:
    """A pair of tones for each token, another pair for each."""
    time_s = np.arange(int(TOKEN_S * RATE)) / RATE
    parts = []
    for token in tokens:
        low, high = 250 * 1.07 ** (token % 23), 1_300 * 1.05 ** (token // 23)
        envelope = np.minimum(1, np.minimum(time_s, TOKEN_S - time_s) / 0.01)
        parts.append(envelope * (np.sin(2 * np.pi * low * time_s) + np.sin(2 * np.pi * high * time_s)))
    return (8_000 * np.concatenate(parts)).astype(np.int16)


def corpus() -> Utterances:
    tokenizer = tiny().tokenizer
    ids = {tokenizer.piece(index): index for index in range(tokenizer.vocab_size)}

    def encode(text: str) -> list[int]:
        return [ids[f"\u2581{word}"] for word in text.split()]

    spoken = [
        Spoken(tones(encode(text)), text, tuple(token % NUM_PHONEMES for token in encode(text)))
        for text in SENTENCES
    ]
    return gathered(spoken, encode)


def small_config_text() -> str:
    path = Path(tiny().source) / "model_config.yaml"
    values = yaml.safe_load(path.read_text())
    values["encoder"].update(SIZES)
    values["decoder"]["prednet"]["pred_hidden"] = HIDDEN
    values["joint"]["jointnet"].update(
        joint_hidden=HIDDEN, pred_hidden=HIDDEN, encoder_hidden=SIZES["d_model"]
    )
    values["model_defaults"] = {
        "enc_hidden": SIZES["d_model"], "pred_hidden": HIDDEN, "joint_hidden": HIDDEN
    }  # fmt: skip
    return yaml.safe_dump(values, allow_unicode=True)


def fresh() -> tuple[TrainingModel, Optimiser]:
    loaded = tiny()
    torch.manual_seed(1)
    config = replace(
        loaded.config,
        num_layers=SIZES["n_layers"],
        d_model=SIZES["d_model"],
        num_heads=SIZES["n_heads"],
        ff_dim=4 * SIZES["d_model"],
        subsampling_channels=SIZES["subsampling_conv_channels"],
        pred_hidden=HIDDEN,
        joint_hidden=HIDDEN,
    )
    filters, window = (loaded.weights[f"preprocessor.featurizer.{name}"] for name in ("fb", "window"))
    model = TrainingModel(config, filters, window, NUM_PHONEMES, drop=0.05)
    return model, Optimiser(FlatParameters(model), Rates(adam=4e-3, muon=1e-2))


def heard(loaded: LoadedModel, utterances: Utterances, right: int) -> list[list[int]]:
    """What the shipped model says to each sentence, by the oracle of the streaming model."""
    oracle = OfflineOracle(loaded, (70, right))
    out = []
    for first, length in zip(utterances.first, utterances.length, strict=True):
        audio = torch.from_numpy(utterances.samples[first : first + length]).float() / 32_768
        audio = torch.nn.functional.pad(audio, (4_800, 12_800)) + 1e-4 * torch.randn(length + 17_600)
        out.append(oracle.run(audio).tokens)
    return out


class Follower(Processes):
    """One of several processes, whose leader says that a quarter is done."""

    def share(self, x: torch.Tensor) -> None:
        x.fill_(0.25)


def test_rates_follow_the_leader_from_the_first_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimiser = fresh()
    settings = replace(SETTINGS, schedule=Schedule(warm_up=0.03, short=0.0))
    calls = encoders(model.encoder, settings.buckets, 128, graphs=False)
    follower = Follower(1, 1, torch.device("cpu"))
    eou = tiny().tokenizer.eou_id
    assert eou is not None
    trainer = Trainer(model, optimiser, corpus(), eou, settings, follower, calls, print)
    rates: list[float] = []
    step = optimiser.step

    def noting(rate_share: float) -> None:
        rates.append(rate_share)
        step(rate_share)

    monkeypatch.setattr(optimiser, "step", noting)
    trainer.run(PACE, time.monotonic() + 600, max_steps=1)
    assert rates == [settings.schedule.rate_share(0.25)]


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_four_sentences_of_tones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    utterances, eou = corpus(), tiny().tokenizer.eou_id
    assert eou is not None
    model, optimiser = fresh()
    base = flat_weights(optimiser.parameters, {})
    started = time.monotonic()
    calls = encoders(model.encoder, SETTINGS.buckets, 128, graphs=False)
    trainer = Trainer(model, optimiser, utterances, eou, SETTINGS, ALONE, calls, print)
    share = trainer.run(PACE, started + 600, max_steps=220)
    save_checkpoint(tmp_path / "session", optimiser, Progress(220, 4, 1, share), base)

    model, optimiser = fresh()
    progress = load_checkpoint(tmp_path / "session", optimiser, base)
    assert progress.num_steps == 220
    calls = encoders(model.encoder, SETTINGS.buckets, 128, graphs=False)
    trainer = Trainer(model, optimiser, utterances, eou, SETTINGS, ALONE, calls, print, progress.num_sessions)
    assert trainer.run(PACE, started + 600) == 1.0
    assert optimiser.num_steps == PACE.num_steps
    taken = time.monotonic() - started

    optimiser.parameters.values_N.copy_(optimiser.average_N)
    shipped = export_model(
        tmp_path / "model",
        model.checkpoint_weights(),
        small_config_text(),
        tiny().tokenizer.model,
        "# Tones\n",
    )
    expected = [[*tokens, eou] for tokens in utterances.tokens]
    with capsys.disabled():
        print(f" {taken:.0f} s", end="")
    for right in (13, 1):
        assert heard(shipped, utterances, right) == expected
