"""The trained modules compute what the oracle of the streaming model computes, under NeMo's names."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.expected_tensors import expected_tensors
from tests.oracle.models import ALL_RECORDINGS, random_model, speech, tiny
from tests.oracle.offline import OfflineOracle
from training.model.transducer import TrainingModel, greedy


def training_model(loaded: LoadedModel, drop: float = 0.1) -> TrainingModel:
    weights = loaded.weights
    model = TrainingModel(
        loaded.config,
        weights["preprocessor.featurizer.fb"],
        weights["preprocessor.featurizer.window"],
        num_phonemes=5,
        drop=drop,
    )
    model.load_weights(weights)
    return model.eval()


def batch(names: tuple[str, ...], limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Recordings of different lengths in one padded batch; the last is a single mel frame."""
    clips = [torch.tensor(speech(name)[: limit - 4_000 * row]) for row, name in enumerate(names)]
    clips.append(clips[0][:200])
    samples = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return samples, torch.tensor([len(clip) for clip in clips])


@pytest.mark.parametrize("right", [13, 6, 1, 0])
@pytest.mark.parametrize("kind", ["tiny", "random"])
def test_encoder_and_tokens_equal_the_oracle(kind: str, right: int) -> None:
    loaded = tiny() if kind == "tiny" else random_model(3)
    model = training_model(loaded)
    samples, lengths = batch(ALL_RECORDINGS[1:3], 60_000)
    encoded = model.encode(samples, lengths, right)
    mel, _ = model.preprocessor(samples, lengths)
    tokens = greedy(model, encoded)
    oracle = OfflineOracle(loaded, (70, right), reset_at_end=False)
    for row, length in enumerate(lengths.tolist()):
        expected = oracle.run(samples[row, :length])
        num_frames = int(encoded.num_frames_B[row])
        assert num_frames == len(expected.encoded)
        torch.testing.assert_close(mel[row, : len(expected.mel)], expected.mel, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            encoded.encoded_BTD[row, :num_frames], expected.encoded, atol=1e-4, rtol=1e-4
        )
        assert tokens[row] == list(zip(expected.tokens, expected.frames, strict=True))
    assert any(tokens)


def test_forward_pass_of_training_is_that_of_inference() -> None:
    """Centring changes gradients only."""
    model = training_model(random_model(3), drop=0.0)
    samples, lengths = batch(ALL_RECORDINGS[1:3], 30_000)
    expected = model.encode(samples, lengths, 1).encoded_BTD
    model.train()
    torch.testing.assert_close(model.encode(samples, lengths, 1).encoded_BTD, expected, atol=1e-4, rtol=1e-4)


def test_checkpoint_has_the_names_that_inference_reads() -> None:
    loaded = random_model(3)
    weights = training_model(loaded).checkpoint_weights()
    assert set(weights) == set(expected_tensors(loaded.config))
    for name, tensor in weights.items():
        assert torch.equal(tensor, loaded.weights[name].float())


def test_missing_and_unknown_tensors_are_told() -> None:
    loaded = random_model(3)
    model = training_model(loaded)
    weights = dict(loaded.weights)
    weights["encoder.other"] = weights.pop("joint.enc.bias")
    with pytest.raises(ValueError, match=r"joint\.enc\.bias.*encoder\.other"):
        model.load_weights(weights)


def test_other_architectures_are_refused() -> None:
    loaded = random_model(3)
    with pytest.raises(ValueError, match="without biases"):
        TrainingModel(
            replace(loaded.config, use_bias=True),
            loaded.weights["preprocessor.featurizer.fb"],
            loaded.weights["preprocessor.featurizer.window"],
            num_phonemes=5,
        )
