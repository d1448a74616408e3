"""The whole model over a whole recording at once: what streaming must equal.

Written from the public description of NeMo's modules and independently of the streaming code: mel by
`torch.stft`, convolutions by `conv2d` with explicit padding and masks, full attention under the
`chunked_limited` mask with Transformer-XL's shift, `torch.nn.LSTM` and frame-by-frame greedy search.  It
shares no code with gpu_worker.model but the loader.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_worker.model.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class Offline:
    """Result of one recording: mel [M, F], subsampled and encoded frames [T, D], tokens with frames.

    `margins` are the gaps between the best and second-best logit at every decision taken.
    """

    mel: Tensor
    subsampled: Tensor
    encoded: Tensor
    tokens: list[int]
    frames: list[int]
    confidences: list[float]
    margins: list[float]


class OfflineOracle:
    """Offline pass of a checkpoint under one attention context, in float32."""

    def __init__(self, loaded: LoadedModel, context: tuple[int, int], *, reset_at_end: bool = True) -> None:
        self.config = loaded.config
        self.w = {name: tensor.float() for name, tensor in loaded.weights.items()}
        self.left, right = context
        self.chunk = right + 1
        self.reset_at_end = reset_at_end
        hidden = self.config.pred_hidden
        self.lstm = torch.nn.LSTM(hidden, hidden, self.config.pred_layers)
        prefix = "decoder.prediction.dec_rnn.lstm."
        self.lstm.load_state_dict(
            {name.removeprefix(prefix): t for name, t in self.w.items() if name.startswith(prefix)}
        )

    @torch.no_grad()
    def run(self, samples: Tensor) -> Offline:
        """Decode a recording of 16 kHz float32 samples."""
        mel = self._mel(samples)
        subsampled = self._subsample(mel)
        encoded = self._encode(subsampled)
        tokens, frames, confidences, margins = self.greedy(encoded)
        return Offline(mel, subsampled, encoded, tokens, frames, confidences, margins)

    def _mel(self, samples: Tensor) -> Tensor:
        mel = self.config.mel
        emphasized = torch.cat([samples[:1], samples[1:] - mel.preemphasis * samples[:-1]])
        spectrum = torch.stft(
            emphasized,
            mel.n_fft,
            mel.hop_length,
            mel.win_length,
            self.w["preprocessor.featurizer.window"],
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.abs().pow(2)
        log_mel = torch.log(self.w["preprocessor.featurizer.fb"][0] @ power + mel.log_zero_guard)
        return log_mel[:, : samples.shape[0] // mel.hop_length].t()

    def _subsample(self, mel: Tensor) -> Tensor:
        prefix = "encoder.pre_encode."

        def conv(x: Tensor, index: int, *, strided: bool, groups: int) -> Tensor:
            weight, bias = self.w[f"{prefix}conv.{index}.weight"], self.w[f"{prefix}conv.{index}.bias"]
            if strided:
                return F.conv2d(F.pad(x, (2, 1, 2, 1)), weight, bias, stride=2, groups=groups)
            return F.conv2d(x, weight, bias)

        x = mel[None, None]
        if x.shape[2] == 0:
            # A recording shorter than one hop: NeMo masks its only frame, and convolves zeros.
            x = torch.zeros(1, 1, 1, self.config.mel.n_mels)
        x = F.relu(conv(x, 0, strided=True, groups=1))
        channels = x.shape[1]
        for index in (2, 5):
            x = F.relu(
                conv(conv(x, index, strided=True, groups=channels), index + 1, strided=False, groups=1)
            )
        flat = x[0].transpose(0, 1).flatten(1)
        return F.linear(flat, self.w[f"{prefix}out.weight"], self.w[f"{prefix}out.bias"])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _encode(self, x: Tensor) -> Tensor:
        config = self.config
        if config.xscaling:
            x = x * math.sqrt(config.d_model)
        num = x.shape[0]
        frame = torch.arange(num)
        chunk = frame // self.chunk
        behind = chunk[:, None] - chunk[None]
        allowed = (behind >= 0) & (behind <= self.left // self.chunk)
        distance = torch.arange(num - 1, -num, -1.0)[:, None]
        rate = torch.exp(torch.arange(0, config.d_model, 2).float() * -(math.log(10000.0) / config.d_model))
        positions = torch.zeros(2 * num - 1, config.d_model)
        positions[:, 0::2] = torch.sin(distance * rate)
        positions[:, 1::2] = torch.cos(distance * rate)
        for layer in range(config.num_layers):
            x = self._layer(x, f"encoder.layers.{layer}", allowed, positions)
        return x

    def _layer(self, x: Tensor, name: str, allowed: Tensor, positions: Tensor) -> Tensor:
        def feed_forward(x: Tensor, part: str) -> Tensor:
            normed = self._norm(x, f"{name}.norm_{part}")
            return self._linear(
                F.silu(self._linear(normed, f"{name}.{part}.linear1")), f"{name}.{part}.linear2"
            )

        x = x + 0.5 * feed_forward(x, "feed_forward1")
        x = x + self._attend(self._norm(x, f"{name}.norm_self_att"), f"{name}.self_attn", allowed, positions)
        x = x + self._convolve(self._norm(x, f"{name}.norm_conv"), f"{name}.conv")
        x = x + 0.5 * feed_forward(x, "feed_forward2")
        return self._norm(x, f"{name}.norm_out")

    def _attend(self, x: Tensor, name: str, allowed: Tensor, positions: Tensor) -> Tensor:
        num, heads, width = x.shape[0], self.config.num_heads, self.config.head_dim

        def split(value: Tensor) -> Tensor:
            return value.view(-1, heads, width).transpose(0, 1)

        q = self._linear(x, f"{name}.linear_q").view(num, heads, width)
        k, v = split(self._linear(x, f"{name}.linear_k")), split(self._linear(x, f"{name}.linear_v"))
        p = split(self._linear(positions, f"{name}.linear_pos"))
        content = (q + self.w[f"{name}.pos_bias_u"]).transpose(0, 1) @ k.transpose(1, 2)
        position = (q + self.w[f"{name}.pos_bias_v"]).transpose(0, 1) @ p.transpose(1, 2)
        shifted = F.pad(position, (1, 0)).view(heads, 2 * num, num)[:, 1:]
        shifted = shifted.reshape(heads, num, 2 * num - 1)[:, :, :num]
        scores = (content + shifted) / math.sqrt(width)
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        return self._linear((weights @ v).transpose(0, 1).reshape(num, -1), f"{name}.linear_out")

    def _convolve(self, x: Tensor, name: str) -> Tensor:
        def conv(x: Tensor, part: str, groups: int = 1) -> Tensor:
            return F.conv1d(
                x, self.w[f"{name}.{part}.weight"], self.w.get(f"{name}.{part}.bias"), groups=groups
            )

        y = F.glu(conv(x.t()[None], "pointwise_conv1"), dim=1)
        y = conv(F.pad(y, (self.config.conv_kernel - 1, 0)), "depthwise_conv", groups=y.shape[1])
        y = F.silu(self._norm(y.transpose(1, 2), f"{name}.batch_norm")).transpose(1, 2)
        return conv(y, "pointwise_conv2")[0].t()

    def greedy(self, encoded: Tensor) -> tuple[list[int], list[int], list[float], list[float]]:
        """Tokens, frames, confidences and margins of encoder frames, one decision after the other."""
        config = self.config
        embedding = self.w["decoder.prediction.embed.weight"]
        zeros = torch.zeros(1, 1, config.pred_hidden)
        start = self.lstm(zeros)
        output, state = start
        ends = {config.eou_id, config.eob_id} if self.reset_at_end else set()
        tokens: list[int] = []
        frames: list[int] = []
        confidences: list[float] = []
        margins: list[float] = []
        for frame, x in enumerate(self._linear(encoded, "joint.enc")):
            for _ in range(config.max_symbols):
                joined = F.relu(x + self._linear(output[0, 0], "joint.pred"))
                logits = self._linear(joined, "joint.joint_net.2")
                top = logits.topk(2)
                token = int(top.indices[0])
                margins.append(float(top.values[0] - top.values[1]))
                if token == config.blank_id:
                    break
                tokens.append(token)
                frames.append(frame)
                confidences.append(self._confidence(logits))
                if token in ends:
                    output, state = start
                    break
                output, state = self.lstm(embedding[token].view(1, 1, -1), state)
        return tokens, frames, confidences, margins

    @staticmethod
    def _confidence(logits: Tensor) -> float:
        """NeMo's `max_prob`: the likeliest symbol's probability, 0 where all are alike."""
        even = 1 / logits.shape[0]
        return (float(logits.softmax(-1).max()) - even) / (1 - even)
