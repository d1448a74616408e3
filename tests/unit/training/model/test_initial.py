"""Where training begins: outputs say unigrams, the subsampling passes the audio on."""

from __future__ import annotations

import torch

from tests.oracle.models import ALL_RECORDINGS, random_model, speech
from training.model.initial import (
    content_share,
    mean_subsampling_input,
    normalise_subsampling,
    set_output_biases,
)
from training.model.transducer import TrainingModel


def fresh_model() -> TrainingModel:
    loaded = random_model(3)
    torch.manual_seed(0)
    return TrainingModel(
        loaded.config,
        loaded.weights["preprocessor.featurizer.fb"],
        loaded.weights["preprocessor.featurizer.window"],
        num_phonemes=4,
    )


def mel_of_recordings(model: TrainingModel) -> tuple[torch.Tensor, torch.Tensor]:
    samples = torch.stack([torch.tensor(speech(name)[:28_000]) for name in ALL_RECORDINGS])
    mel, lengths = model.preprocessor(samples, torch.full((len(samples),), 28_000))
    return mel, lengths


def test_outputs_begin_at_unigram_log_probabilities() -> None:
    model = fresh_model()
    set_output_biases(model, [[3, 3, 7], [3]], [[0, 1], [1, 1]])
    shares = model.joint.output.bias.detach().exp()
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    torch.testing.assert_close(shares[model.config.blank_id], torch.tensor(0.65))
    assert float(shares[3] / shares[7]) > 2.0
    assert float(shares[3] / shares[0]) > 10.0
    assert torch.equal(model.ctc.bias, model.joint.output.bias)
    phonemes = model.ph.bias.detach().view(3, 5)
    assert torch.equal(phonemes[0], phonemes[2])
    torch.testing.assert_close(phonemes[0].exp().sum(), torch.tensor(1.0))


def test_subsampling_begins_normal_and_passes_the_audio_on() -> None:
    model = fresh_model()
    mel, lengths = mel_of_recordings(model)
    x, _ = model.encoder.pre_encode(mel, lengths)
    before = content_share(x)
    normalise_subsampling(model.encoder, mel, lengths)
    x, num_frames = model.encoder.pre_encode(mel, lengths)
    valid = torch.cat([row[:length] for row, length in zip(x, num_frames.tolist(), strict=True)])
    torch.testing.assert_close(valid.mean(0), torch.zeros(valid.shape[1]), atol=1e-2, rtol=0)
    torch.testing.assert_close(valid.std(0), torch.ones(valid.shape[1]), atol=1e-2, rtol=0)
    assert content_share(x) > 0.5 > 2 * before


def test_content_share_of_a_collapsed_encoder_is_nothing() -> None:
    constant = torch.randn(1, 10, 8).expand(4, -1, -1)
    assert content_share(constant) < 1e-6
    assert content_share(torch.randn(50, 10, 8)) > 0.9


def test_mean_input_is_of_valid_frames_alone() -> None:
    model = fresh_model()
    mel, lengths = mel_of_recordings(model)
    lengths = lengths // 2
    whole = mean_subsampling_input(model.encoder, mel[:, : int(lengths[0])], lengths)
    padded = torch.nn.functional.pad(mel[:, : int(lengths[0])], (0, 0, 0, 300))
    torch.testing.assert_close(mean_subsampling_input(model.encoder, padded, lengths), whole)
    assert (whole >= 0).all()
