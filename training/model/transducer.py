"""The whole model in training: features, encoder, predictor, joint, and two heads that only training has.

Shape legend: B rows, T encoder frames, U target tokens, D model width, J joint width, V tokens with blank.

Source: NeMo `RNNTDecoder` (blank_as_pad: the start embeds to zeros) and `RNNTJoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpu_worker.model.config import ModelConfig
from gpu_worker.model.loading.expected_tensors import expected_tensors
from training.model.centred import CentredLinear
from training.model.conformer import Encoder
from training.model.features import LogMel
from training.model.subsampling import dropout

# A phoneme is much shorter than a frame of 80 ms: the phoneme head emits this many labels in each frame.
PHONEMES_PER_FRAME = 3


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoder output encoded_BTD, frames of each row, and the middle layer's output middle_BTD."""

    encoded_BTD: Tensor
    num_frames_B: Tensor
    middle_BTD: Tensor


class _Recurrent(nn.Module):
    """Holds the LSTM under its name in a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(config.pred_hidden, config.pred_hidden, config.pred_layers)


class Prediction(nn.Module):
    """Embedding and LSTM over the targets."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size + 1, config.pred_hidden, padding_idx=config.blank_id)
        self.dec_rnn = _Recurrent(config)

    def forward(self, targets_BU: Tensor) -> Tensor:
        """Return outputs [B, U + 1, width] after the start and after each target."""
        embedded = F.pad(self.embed(targets_BU), (0, 0, 1, 0))
        out: Tensor = self.dec_rnn.lstm(embedded.transpose(0, 1))[0]
        return out.transpose(0, 1)


class _Decoder(nn.Module):
    """Holds the predictor under its name in a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.prediction = Prediction(config)


class Joint(nn.Module):
    """Projections of encoder and predictor, added, ReLU, output layer."""

    def __init__(self, config: ModelConfig, drop: float) -> None:
        super().__init__()
        self.enc = CentredLinear(config.d_model, config.joint_hidden)
        self.pred = nn.Linear(config.pred_hidden, config.joint_hidden)
        output = nn.Linear(config.joint_hidden, config.vocab_size + 1)
        self.joint_net = nn.Sequential(nn.ReLU(), nn.Dropout(drop), output)

    @property
    def output(self) -> nn.Linear:
        """The output layer."""
        layer = self.joint_net[2]
        assert isinstance(layer, nn.Linear)
        return layer


class TrainingModel(nn.Module):
    """A cache-aware FastConformer transducer for training.

    Its state dict holds every tensor of `expected_tensors(config)` under NeMo's name, and besides the heads
    `ctc` (tokens, on the encoder's output) and `ph` (phonemes, on a middle layer). NeMo uses neither name.

    Args:
        config: architecture.
        filters_1FK, window: filter bank and window of the mel front end.
        num_phonemes: number of labels of the phoneme head, without blank.
        drop: share of activations that training drops.
    """

    def __init__(
        self, config: ModelConfig, filters_1FK: Tensor, window: Tensor, num_phonemes: int, drop: float = 0.1
    ) -> None:
        super().__init__()
        self.config, self.drop, self.num_phonemes = config, drop, num_phonemes
        self.preprocessor = LogMel(config.mel, filters_1FK, window)
        self.encoder = Encoder(config, drop, middle=config.num_layers // 2)
        self.decoder = _Decoder(config)
        self.joint = Joint(config, drop)
        self.ctc = CentredLinear(config.d_model, config.vocab_size + 1)
        self.ph = CentredLinear(config.d_model, PHONEMES_PER_FRAME * (num_phonemes + 1))

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the tensors of a checkpoint, with or without those of the heads."""
        missing, unexpected = self.load_state_dict(
            {name: tensor.float() for name, tensor in weights.items()}, strict=False
        )
        heads = {name for name in missing if name.startswith(("ctc.", "ph."))}
        if unexpected or set(missing) - heads:
            raise ValueError(f"missing tensors {sorted(set(missing) - heads)}, unknown ones {unexpected}")

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """Return the tensors that inference reads, under NeMo's names."""
        state = self.state_dict()
        return {name: state[name] for name in expected_tensors(self.config)}

    def predict(self, targets_BU: Tensor) -> Tensor:
        """Return predictor outputs, projected for the joint, [B, U + 1, J]."""
        hidden = dropout(self.decoder.prediction(targets_BU), self.drop, self)
        out: Tensor = self.joint.pred(hidden)
        return out

    def logits(self, encoded_BTD: Tensor, targets_BU: Tensor) -> Tensor:
        """Return the joint network's logits over the whole lattice, [B, T, U + 1, V]."""
        encoder = self.joint.enc(encoded_BTD)[:, :, None]
        out: Tensor = self.joint.joint_net(encoder + self.predict(targets_BU)[:, None])
        return out

    def token_log_probs(self, encoded_BTD: Tensor) -> Tensor:
        """Return the CTC head's log-probabilities, [B, T, V] in float32."""
        logits: Tensor = self.ctc(encoded_BTD.float())
        return logits.log_softmax(-1)

    def phoneme_log_probs(self, middle_BTD: Tensor) -> Tensor:
        """Return the phoneme head's log-probabilities, [B, 3 T, phonemes + 1] in float32, the blank last."""
        num_rows, num_frames, _ = middle_BTD.shape
        logits: Tensor = self.ph(middle_BTD.float())
        return logits.view(num_rows, PHONEMES_PER_FRAME * num_frames, self.num_phonemes + 1).log_softmax(-1)

    @torch.no_grad()
    def encode(self, samples_BN: Tensor, num_samples_B: Tensor, right_frames: int) -> Encoded:
        """Encode samples to encoder frames under one right context."""
        mel, num_mels = self.preprocessor(samples_BN, num_samples_B)
        right = torch.tensor(right_frames, device=mel.device)
        return Encoded(*self.encoder(mel, num_mels, right))


@torch.no_grad()
def greedy(model: TrainingModel, encoded: Encoded) -> list[list[tuple[int, int]]]:
    """Decode a batch greedily; return the (token, encoder frame) pairs of each row.

    The predictor is not reset at `<EOU>`: training never resets it.
    """
    config = model.config
    projected_BTJ = model.joint.enc(encoded.encoded_BTD)
    num_rows, num_frames, _ = projected_BTJ.shape
    device = projected_BTJ.device
    prediction = model.decoder.prediction
    shape = (config.pred_layers, num_rows, config.pred_hidden)
    state = (torch.zeros(shape, device=device), torch.zeros(shape, device=device))
    hidden, state = prediction.dec_rnn.lstm(
        torch.zeros(1, num_rows, config.pred_hidden, device=device), state
    )
    rows: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    for frame in range(num_frames):
        active = frame < encoded.num_frames_B
        for _ in range(config.max_symbols):
            joined = projected_BTJ[:, frame] + model.joint.pred(hidden[0])
            token = model.joint.joint_net(joined).argmax(-1)
            active = active & (token != config.blank_id)
            if not bool(active.any()):
                break
            for row in active.nonzero().flatten().tolist():
                rows[row].append((int(token[row]), frame))
            moved, moved_state = prediction.dec_rnn.lstm(prediction.embed(token)[None], state)
            keep = active[None, :, None]
            hidden = torch.where(keep, moved, hidden)
            state = (torch.where(keep, moved_state[0], state[0]), torch.where(keep, moved_state[1], state[1]))
    return rows
