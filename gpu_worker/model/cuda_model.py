"""The streaming model on CUDA: the three stages of `StreamingModel` in fused kernels.

Shapes depend on (B, T) only and no operation waits for the host, so a whole step can be captured as one
graph. A row may have any number of valid frames, unlike in the plain model; caches advance by that number. A
slot needs no reset: a row that begins a stream reads no earlier state of its slot. Weights are laid out for
the kernels and positions are projected once, at construction. Each residual branch ends in a matrix product
that adds to the residual stream.

Shape suffixes: B streams of the step, T encoder frames of a row, N = T * frame_samples samples, M rows
(B T), D model width, J joint width, K most symbols of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_worker.kernels.begin_streams import begin_streams
from gpu_worker.kernels.conv_module import glu_depthwise_conv
from gpu_worker.kernels.greedy_decode import greedy_decode
from gpu_worker.kernels.layer_norm import layer_norm, two_layer_norms
from gpu_worker.kernels.log_mel import dft_matrix, log_mel_window
from gpu_worker.kernels.paged_attention import attend, position_bias, write_kv
from gpu_worker.kernels.reference.boosting_tree_reference import SlotTrees
from gpu_worker.kernels.reference.greedy_decode_reference import TransducerWeights
from gpu_worker.kernels.reference.log_mel_reference import (
    CACHED_MELS,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    TAIL_SAMPLES,
    WIN_SAMPLES,
)
from gpu_worker.kernels.subsampling import conv_and_depthwise, depthwise
from gpu_worker.model.config import ModelConfig
from gpu_worker.model.layers.attention import relative_positions
from gpu_worker.model.layers.predictor import Predictor
from gpu_worker.model.layers.prompt import PromptKernel
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.state import KVPages, PredictorStart, SlotState

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class CudaStep:
    """One step's rows, all on the device and contiguous; integers are int32.

    `samples_BN` holds the samples after each row's kept samples; they are zero before a stream's first sample
    and after its last.  `start_B` is the first encoder frame, `num_frames_B` the number of valid frames,
    `total_samples_B` the stream's length or UNKNOWN_END.  Padding rows have the spare slot and no frames.
    """

    samples_BN: Tensor
    slots_B: Tensor
    start_B: Tensor
    num_frames_B: Tensor
    total_samples_B: Tensor
    block_table_BM: Tensor


@dataclass(frozen=True, slots=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x_MD: Tensor) -> Tensor:
        return F.linear(x_MD, self.weight, self.bias)

    def add_to(self, residual_MD: Tensor, x_ME: Tensor) -> None:
        """Add x W^T (+ bias) to `residual` in place, in the same pass over memory as the product."""
        residual_MD.addmm_(x_ME, self.weight.t())
        if self.bias is not None:
            residual_MD.add_(self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    bias: Tensor

    def __call__(self, x_MD: Tensor) -> Tensor:
        return layer_norm(x_MD, self.weight, self.bias, LAYER_NORM_EPS)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one Conformer layer; the factors 1/2 of the feed-forward branches are folded in."""

    norm_ff1: _Norm
    ff1_in: _Linear
    ff1_out: _Linear
    norm_attention: _Norm
    qkv: _Linear
    attention_out: _Linear
    bias_u_HD: Tensor
    pos_HDR: Tensor
    pos_bias_HR: Tensor
    norm_conv: _Norm
    conv_in: _Linear
    conv_taps_KD: Tensor
    conv_bias_D: Tensor | None
    conv_norm: _Norm
    conv_out: _Linear
    norm_ff2: _Norm
    ff2_in: _Linear
    ff2_out: _Linear
    norm_out: _Norm


class CudaModel:
    """A cache-aware FastConformer transducer under one attention context, for CUDA.

    Args:
        loaded: checkpoint on its device, in its compute type.
        context: (left, right) attention context in encoder frames; a chunk is right + 1 frames.
        reset_at_end: whether `<EOU>` and `<EOB>` reset the predictor to its start.

    Raises ValueError for a front end or subsampling that the kernels do not support.
    """

    def __init__(
        self, loaded: LoadedModel, context: tuple[int, int] | None = None, *, reset_at_end: bool = True
    ) -> None:
        config = loaded.config
        _check_supported(config)
        self.config = config
        self.context = context or config.default_context
        self.left_frames, right = self.context
        self.chunk_frames = right + 1
        self.device = loaded.device
        self.dtype = loaded.dtype
        self.max_symbols = config.max_symbols
        self._weights = dict(loaded.weights)
        with torch.inference_mode():
            self._load_front_end()
            self._load_subsampling()
            self._layers = tuple(self._load_layer(index) for index in range(config.num_layers))
            self.prompt = PromptKernel(config, loaded.weights) if config.prompt is not None else None
            self._load_transducer(Predictor(config, loaded.weights), reset_at_end)
        # The remaining tensors are views of the checkpoint; only the laid-out copies above are used.
        self._weights.clear()

    def _load_front_end(self) -> None:
        mel = self.config.mel
        self._window = self._weights["preprocessor.featurizer.window"].to(self.device, torch.float32)
        filters = self._weights["preprocessor.featurizer.fb"].to(self.device, torch.float32)
        self._mel_filters = filters[0].t().contiguous()
        self._dft = dft_matrix(self._window, mel.n_fft)

    def _load_subsampling(self) -> None:
        config, prefix = self.config, "encoder.pre_encode"
        channels = config.subsampling_channels

        def taps(index: int) -> tuple[Tensor, Tensor]:
            weight = self._weights[f"{prefix}.conv.{index}.weight"].reshape(channels, 9)
            return weight.t().contiguous(), self._weights[f"{prefix}.conv.{index}.bias"].contiguous()

        def pointwise(index: int) -> _Linear:
            weight = self._weights[f"{prefix}.conv.{index}.weight"].reshape(channels, channels)
            return _Linear(weight.contiguous(), self._weights[f"{prefix}.conv.{index}.bias"])

        self._conv, self._depthwise1, self._depthwise2 = taps(0), taps(2), taps(5)
        self._pointwise1, self._pointwise2 = pointwise(3), pointwise(6)
        # NeMo flattens [channels, bins]; here the layout of a frame is [bins, channels].
        out = self._weights[f"{prefix}.out.weight"].view(config.d_model, channels, config.subsampled_mels)
        scale = config.d_model**0.5 if config.xscaling else 1.0
        self._subsampling_out = _Linear(
            (scale * out.transpose(1, 2).reshape(config.d_model, -1)).contiguous(),
            scale * self._weights[f"{prefix}.out.bias"],
        )

    def _load_layer(self, index: int) -> _Layer:
        config, weights, prefix = self.config, self._weights, f"encoder.layers.{index}"

        def norm(name: str) -> _Norm:
            return _Norm(weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"])

        def linear(name: str, scale: float = 1.0) -> _Linear:
            weight = weights[f"{prefix}.{name}.weight"]
            weight = weight.squeeze(2) if weight.dim() == 3 else weight
            bias = scale * weights[f"{prefix}.{name}.bias"] if config.use_bias else None
            return _Linear((scale * weight).contiguous() if scale != 1.0 else weight.contiguous(), bias)

        qkv = [linear(f"self_attn.linear_{part}") for part in "qkv"]
        qkv_bias = (
            torch.cat([part.bias for part in qkv if part.bias is not None]) if config.use_bias else None
        )
        positions = relative_positions(config.d_model, self.left_frames, self.chunk_frames, self.device)
        projection = weights[f"{prefix}.self_attn.linear_pos.weight"]
        pos_RD = positions.to(self.dtype) @ projection.t()
        pos_HDR, pos_bias_HR = position_bias(
            pos_RD.view(-1, config.num_heads, config.head_dim), weights[f"{prefix}.self_attn.pos_bias_v"]
        )
        taps = weights[f"{prefix}.conv.depthwise_conv.weight"].squeeze(1)
        return _Layer(
            norm_ff1=norm("norm_feed_forward1"),
            ff1_in=linear("feed_forward1.linear1"),
            ff1_out=linear("feed_forward1.linear2", 0.5),
            norm_attention=norm("norm_self_att"),
            qkv=_Linear(torch.cat([part.weight for part in qkv]), qkv_bias),
            attention_out=linear("self_attn.linear_out"),
            bias_u_HD=weights[f"{prefix}.self_attn.pos_bias_u"].contiguous(),
            pos_HDR=pos_HDR,
            pos_bias_HR=pos_bias_HR,
            norm_conv=norm("norm_conv"),
            conv_in=linear("conv.pointwise_conv1"),
            conv_taps_KD=taps.t().contiguous(),
            conv_bias_D=weights[f"{prefix}.conv.depthwise_conv.bias"] if config.use_bias else None,
            conv_norm=norm("conv.batch_norm"),
            conv_out=linear("conv.pointwise_conv2"),
            norm_ff2=norm("norm_feed_forward2"),
            ff2_in=linear("feed_forward2.linear1"),
            ff2_out=linear("feed_forward2.linear2", 0.5),
            norm_out=norm("norm_out"),
        )

    def _load_transducer(self, predictor: Predictor, reset_at_end: bool) -> None:
        config, weights = self.config, self._weights
        lstm, layers = "decoder.prediction.dec_rnn.lstm", range(config.pred_layers)
        embedding = weights["decoder.prediction.embed.weight"].float().clone()
        embedding[config.blank_id] = 0.0
        bias_LG = torch.stack(
            [
                weights[f"{lstm}.bias_ih_l{layer}"].float() + weights[f"{lstm}.bias_hh_l{layer}"].float()
                for layer in layers
            ]
        )
        input_LGH = torch.stack([weights[f"{lstm}.weight_ih_l{layer}"] for layer in layers])
        hidden, cell = predictor.start()
        output = F.linear(hidden[-1], weights["joint.pred.weight"], weights["joint.pred.bias"])
        ends = [token for token in (config.eou_id, config.eob_id) if token is not None]
        self._encoder_projection = _Linear(weights["joint.enc.weight"], weights["joint.enc.bias"])
        self.transducer = TransducerWeights(
            symbol_gates_VG=torch.addmm(bias_LG[0], embedding, input_LGH[0].float().t()),
            input_LGH=input_LGH,
            hidden_LGH=torch.stack([weights[f"{lstm}.weight_hh_l{layer}"] for layer in layers]),
            bias_LG=bias_LG,
            pred_JH=weights["joint.pred.weight"].contiguous(),
            pred_bias_J=weights["joint.pred.bias"],
            out_VJ=weights["joint.joint_net.2.weight"].contiguous(),
            out_bias_V=weights["joint.joint_net.2.bias"],
            start_LH=hidden[:, 0].contiguous(),
            start_cell_LH=cell[:, 0].float().contiguous(),
            start_output_J=output[0].contiguous(),
            blank_id=config.blank_id,
            max_symbols=config.max_symbols,
            end_ids=tuple(ends) if reset_at_end else (),
        )

    def make_state(self, num_slots: int) -> SlotState:
        """Return the state of `num_slots` slots and a spare slot, all of them reset."""
        config, rows, transducer = self.config, num_slots + 1, self.transducer

        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        default = config.prompt.default_language if config.prompt is not None else None
        state = SlotState(
            tail_SZ=zeros(rows, TAIL_SAMPLES, dtype=torch.float32),
            mel_SF=zeros(rows, CACHED_MELS * config.mel.n_mels, dtype=torch.float32),
            levels_SGC=(),
            conv_LSKD=zeros(config.num_layers, rows, config.conv_kernel - 1, config.d_model),
            hidden_PSU=zeros(config.pred_layers, rows, config.pred_hidden),
            cell_PSU=zeros(config.pred_layers, rows, config.pred_hidden, dtype=torch.float32),
            output_SJ=zeros(rows, config.joint_hidden),
            prompt_S=zeros(rows, dtype=torch.int64),
            node_SM=zeros(rows, 2, dtype=torch.int32),
            start=PredictorStart(transducer.start_LH, transducer.start_cell_LH, transducer.start_output_J),
            default_prompt=config.prompt.index(default) if config.prompt and default else 0,
            num_prompts=1 if config.prompt is None else config.prompt.num_prompts,
        )
        state.reset(torch.arange(rows, device=self.device))
        return state

    def pre_encode(self, step: CudaStep, state: SlotState) -> Tensor:
        """Compute the subsampled frames x_BTD of the samples; update the tail and the cached mel frames."""
        mel = self.config.mel
        mel_BWN = log_mel_window(
            step.samples_BN,
            state.tail_SZ,
            state.mel_SF,
            step.slots_B,
            step.start_B,
            step.num_frames_B,
            step.total_samples_B,
            self._window,
            self._dft,
            self._mel_filters,
            mel.preemphasis,
            mel.log_zero_guard,
        )
        mel_end_B = torch.div(step.total_samples_B, HOP_SAMPLES, rounding_mode="floor")
        hidden = conv_and_depthwise(mel_BWN, step.start_B, mel_end_B, *self._conv, *self._depthwise1)
        hidden = _relu(self._pointwise1, hidden)
        hidden = depthwise(hidden, step.start_B, mel_end_B, *self._depthwise2)
        hidden = _relu(self._pointwise2, hidden)
        num_streams, num_frames = hidden.shape[:2]
        out_MD = self._subsampling_out(hidden.view(num_streams * num_frames, -1))
        return out_MD.view(num_streams, num_frames, -1)

    def encode(self, x_BTD: Tensor, step: CudaStep, state: SlotState, pages: KVPages) -> Tensor:
        """Compute the encoder frames [B, T, D] of subsampled frames; update pages and convolution caches."""
        num_streams, num_frames, width = x_BTD.shape
        x_MD = x_BTD.view(-1, width)
        normed_MD = self._layers[0].norm_ff1(x_MD)
        for index, layer in enumerate(self._layers):
            layer.ff1_out.add_to(x_MD, F.silu(layer.ff1_in(normed_MD), inplace=True))
            self._attend(layer, x_MD, step, pages.keys_LNWHE[index], pages.values_LNWHE[index])
            gates = layer.conv_in(layer.norm_conv(x_MD)).view(num_streams, num_frames, -1)
            mixed = glu_depthwise_conv(
                gates,
                state.conv_LSKD[index],
                step.slots_B,
                step.start_B,
                step.num_frames_B,
                layer.conv_taps_KD,
                layer.conv_bias_D,
                layer.conv_norm.weight,
                layer.conv_norm.bias,
                LAYER_NORM_EPS,
            )
            layer.conv_out.add_to(x_MD, mixed.view(-1, width))
            layer.ff2_out.add_to(x_MD, F.silu(layer.ff2_in(layer.norm_ff2(x_MD)), inplace=True))
            if index + 1 < len(self._layers):
                following = self._layers[index + 1].norm_ff1
                x_MD, normed_MD = two_layer_norms(
                    x_MD,
                    layer.norm_out.weight,
                    layer.norm_out.bias,
                    following.weight,
                    following.bias,
                    LAYER_NORM_EPS,
                )
        return self._layers[-1].norm_out(x_MD).view(num_streams, num_frames, width)

    def _attend(self, layer: _Layer, x_MD: Tensor, step: CudaStep, keys: Tensor, values: Tensor) -> None:
        num_streams = step.slots_B.shape[0]
        qkv = layer.qkv(layer.norm_attention(x_MD))
        qkv = qkv.view(num_streams, -1, 3, self.config.num_heads, self.config.head_dim)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        rows = (step.block_table_BM, step.start_B, step.num_frames_B)
        write_kv(k, v, keys, values, *rows)
        attended = attend(
            q,
            keys,
            values,
            *rows,
            layer.pos_HDR,
            layer.pos_bias_HR,
            layer.bias_u_HD,
            chunk_frames=self.chunk_frames,
            left_frames=self.left_frames,
        )
        layer.attention_out.add_to(x_MD, attended.view(x_MD.shape))

    def project_encoded(self, encoded_BTD: Tensor, step: CudaStep, state: SlotState) -> Tensor:
        """Return the joint network's projection of the encoder frames, [B, T, J]."""
        if self.prompt is not None:
            encoded_BTD = self.prompt.run(encoded_BTD, state.prompt_S.index_select(0, step.slots_B))
        return self._encoder_projection(encoded_BTD)

    def decode(
        self, encoded_BTD: Tensor, step: CudaStep, state: SlotState, trees: SlotTrees | None = None
    ) -> Tensor:
        """Decode encoder frames to symbols, int32 [B, 1 + 3K], in the layout of `greedy_decode`."""
        transducer = self.transducer
        begin_streams(
            state.hidden_PSU,
            state.cell_PSU,
            state.output_SJ,
            state.node_SM,
            step.slots_B,
            step.start_B,
            transducer.start_LH,
            transducer.start_cell_LH,
            transducer.start_output_J,
        )
        return greedy_decode(
            self.project_encoded(encoded_BTD, step, state),
            step.num_frames_B,
            step.slots_B,
            state.hidden_PSU,
            state.cell_PSU,
            state.output_SJ,
            transducer,
            trees,
        )


def _relu(linear: _Linear, x_BTFC: Tensor) -> Tensor:
    rows = x_BTFC.view(-1, x_BTFC.shape[-1])
    fused: Callable[..., Tensor] = torch._addmm_activation  # the library's bias and ReLU epilogue
    return fused(linear.bias, rows, linear.weight.t()).view(x_BTFC.shape)


def _check_supported(config: ModelConfig) -> None:
    mel = config.mel
    if (mel.win_length, mel.hop_length, config.subsampling_factor) != (WIN_SAMPLES, HOP_SAMPLES, 8):
        raise ValueError(
            f"the CUDA kernels take windows of {WIN_SAMPLES} samples every {HOP_SAMPLES} and subsampling "
            f"by 8, not {mel.win_length}, {mel.hop_length} and {config.subsampling_factor}"
        )
    assert config.frame_samples == FRAME_SAMPLES
