"""The modules that are trained against NeMo's offline pass, in float32."""

from __future__ import annotations

import pytest
import torch

from tests.golden.cache import CONTEXTS, DETAILED, checkpoint, clips, decoding, reference
from training.model.transducer import TrainingModel, greedy

pytestmark = [pytest.mark.golden, pytest.mark.timeout(900)]

TOLERANCE = 1e-4


@pytest.mark.parametrize("clip", DETAILED)
@pytest.mark.parametrize("context", CONTEXTS["tiny"], ids=str)
def test_features_encoder_and_tokens(context: tuple[int, int], clip: str) -> None:
    loaded, expected = checkpoint("tiny"), reference("tiny", context, clip)
    filters, window = (loaded.weights[f"preprocessor.featurizer.{name}"] for name in ("fb", "window"))
    model = TrainingModel(loaded.config, filters, window, num_phonemes=1)
    model.load_weights(loaded.weights)
    model.eval()
    samples = torch.from_numpy(clips()[clip].samples)[None]
    lengths = torch.tensor([samples.shape[1]])
    mel, num_mels = model.preprocessor(samples, lengths)
    encoded = model.encode(samples, lengths, context[1])
    found_mel = mel[0, : int(num_mels)].T
    assert float((found_mel - torch.from_numpy(expected["mel"])).abs().max()) < TOLERANCE
    found = encoded.encoded_BTD[0, : int(encoded.num_frames_B)]
    difference = found - torch.from_numpy(expected["encoded"])
    assert float(difference.abs().max()) < TOLERANCE
    plain = decoding(expected, reset=False)
    assert greedy(model, encoded)[0] == list(zip(plain.tokens, plain.frames, strict=True))
