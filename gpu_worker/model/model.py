"""The streaming model: three stages of pure device work over slot-indexed state.

`pre_encode` turns samples into subsampled frames, `encode` runs the conformer layers over them with keys
and values in pages, `decode` emits tokens. Every stage reads and writes only the rows of
`StepInputs.slots_B`, in shapes that depend on (B, T) only. Rows take whole chunks, all of the same number of
frames. Only the last step of a stream may have fewer frames, so no cache depends on a row's count.

Shape legend: B rows, T encoder frames of a row, N = T * frame_samples samples, M pages of a ring,
D model width, J joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_worker.kernels.reference.paged_attention_reference import attention_geometry, paged_attention
from gpu_worker.model.layers.attention import AttentionStep, PagedAttention, page_positions
from gpu_worker.model.layers.conformer import Encoder
from gpu_worker.model.layers.decoding import Emissions, Fusion, GreedyDecoder
from gpu_worker.model.layers.features import MelFrontEnd
from gpu_worker.model.layers.joint import Joint
from gpu_worker.model.layers.predictor import Predictor
from gpu_worker.model.layers.prompt import PromptKernel
from gpu_worker.model.layers.subsampling import Subsampling, SubsamplingCache
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.state import KVPages, SlotState


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's rows on the device.

    `samples_BN` holds the samples after each row's kept samples; they are zero before a stream's first sample
    and after its last.  `start_B` is the first encoder frame, `num_frames_B` the number of valid frames,
    `total_samples_B` the stream's length or UNKNOWN_END.  `edges`: a row may hold a stream's first frame or
    its end; `full`: every row has T valid frames.  Padding rows have the spare slot, the spare page and no
    frames.
    """

    samples_BN: Tensor
    slots_B: Tensor
    start_B: Tensor
    num_frames_B: Tensor
    total_samples_B: Tensor
    block_table_BM: Tensor
    edges: bool
    full: bool

    def rows(self, first: int, end: int) -> StepInputs:
        """Return the part of the step for rows first .. end - 1."""
        if first == 0 and end >= self.slots_B.shape[0]:
            return self
        part = slice(first, end)
        return StepInputs(
            self.samples_BN[part],
            self.slots_B[part],
            self.start_B[part],
            self.num_frames_B[part],
            self.total_samples_B[part],
            self.block_table_BM[part],
            self.edges,
            self.full,
        )


class StreamingModel:
    """A cache-aware FastConformer transducer under one attention context.

    Args:
        loaded: checkpoint on its device, in its compute type.
        context: (left, right) attention context in encoder frames; a chunk is right + 1 frames.
        reset_at_end: whether `<EOU>` and `<EOB>` reset the predictor to its start.
        attention: attention kernel; the default is the one in plain PyTorch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        context: tuple[int, int] | None = None,
        *,
        reset_at_end: bool = True,
        attention: PagedAttention = paged_attention,
    ) -> None:
        config, weights = loaded.config, loaded.weights
        self.config = config
        self.context = context or config.default_context
        self.left_frames, right = self.context
        self.chunk_frames = right + 1
        if self.left_frames % self.chunk_frames:
            raise ValueError(
                f"left context {self.left_frames} is no multiple of the chunk {self.chunk_frames}"
            )
        self.device = loaded.device
        self.dtype = loaded.dtype
        self.needs_geometry = attention is paged_attention
        with torch.inference_mode():
            self.front_end = MelFrontEnd(config, weights, self.device)
            self.subsampling = Subsampling(config, weights)
            self.encoder = Encoder(config, weights, self.context, attention)
            self.prompt = PromptKernel(config, weights) if config.prompt is not None else None
            self.predictor = Predictor(config, weights)
            self.joint = Joint(weights)
            self.decoder = GreedyDecoder(config, self.predictor, self.joint, reset_at_end=reset_at_end)

    def make_state(self, num_slots: int) -> SlotState:
        """Return the state of `num_slots` slots and a spare slot, all of them reset."""
        config, rows = self.config, num_slots + 1

        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        channels = self.subsampling.channels
        state = SlotState(
            tail_SZ=zeros(rows, self.front_end.tail_samples, dtype=torch.float32),
            mel_SF=zeros(rows, config.mel.n_mels, dtype=torch.float32),
            levels_SGC=tuple(zeros(rows, bins, channels) for bins in self.subsampling.level_bins),
            conv_LSKD=zeros(config.num_layers, rows, config.conv_kernel - 1, config.d_model),
            hidden_PSU=zeros(config.pred_layers, rows, config.pred_hidden),
            cell_PSU=zeros(config.pred_layers, rows, config.pred_hidden),
            output_SJ=zeros(rows, config.joint_hidden),
            prompt_S=zeros(rows, dtype=torch.int64),
            node_SM=zeros(rows, 2, dtype=torch.int32),
            start=self.decoder.start,
            default_prompt=self._default_prompt(),
            num_prompts=1 if config.prompt is None else config.prompt.num_prompts,
        )
        state.reset(torch.arange(rows, device=self.device))
        return state

    def _default_prompt(self) -> int:
        prompt = self.config.prompt
        language = prompt.default_language if prompt is not None else None
        return prompt.index(language) if prompt is not None and language is not None else 0

    def pre_encode(self, step: StepInputs, state: SlotState) -> Tensor:
        """Compute the subsampled frames x_BTD of the samples; update the tail and the subsampling caches."""
        slots = step.slots_B
        mel, tail = self.front_end.run(
            state.tail_SZ.index_select(0, slots),
            step.samples_BN,
            step.start_B,
            step.total_samples_B,
            edges=step.edges,
        )
        state.tail_SZ.index_copy_(0, slots, tail)
        cache = SubsamplingCache(
            state.mel_SF.index_select(0, slots),
            tuple(level.index_select(0, slots) for level in state.levels_SGC),
        )
        total_mels = step.total_samples_B // self.front_end.hop
        x, moved = self.subsampling.run(mel, cache, step.start_B, total_mels, edges=step.edges)
        state.mel_SF.index_copy_(0, slots, moved.mel_BF.float())
        for level, value in zip(state.levels_SGC, moved.levels_BGC, strict=True):
            level.index_copy_(0, slots, value)
        return x

    def encode(self, x_BTD: Tensor, step: StepInputs, state: SlotState, pages: KVPages) -> Tensor:
        """Compute the encoder frames [B, T, D] of subsampled frames; update pages and convolution caches."""
        num_frames = x_BTD.shape[1]
        table = step.block_table_BM
        page_BT, offset_BT = page_positions(
            table, step.start_B, step.num_frames_B, num_frames, pages.page_frames, pages.spare_page
        )
        geometry = (
            attention_geometry(
                num_frames,
                table.shape[1] * pages.page_frames,
                step.start_B,
                step.num_frames_B,
                chunk_frames=self.chunk_frames,
                left_frames=self.left_frames,
                all_valid=step.full,
                dtype=self.dtype,
            )
            if self.needs_geometry
            else None
        )
        shared = AttentionStep(table, step.start_B, step.num_frames_B, page_BT, offset_BT, geometry)
        conv = state.conv_LSKD.index_select(1, step.slots_B)
        encoded = self.encoder.run(x_BTD, pages.keys_LNWHE, pages.values_LNWHE, conv, shared)
        state.conv_LSKD.index_copy_(1, step.slots_B, conv)
        return encoded

    def decode(
        self, encoded_BTD: Tensor, step: StepInputs, state: SlotState, fusion: Fusion | None = None
    ) -> Emissions | None:
        """Decode encoder frames to tokens and update the predictor state. `fusion` has the step's rows."""
        slots = step.slots_B
        if self.prompt is not None:
            encoded_BTD = self.prompt.run(encoded_BTD, state.prompt_S.index_select(0, slots))
        work = self.decoder.begin(
            self.joint.project_encoder(encoded_BTD),
            step.num_frames_B,
            state.hidden_PSU.index_select(1, slots),
            state.cell_PSU.index_select(1, slots),
            state.output_SJ.index_select(0, slots),
            fusion,
        )
        emissions = self.decoder.run(work)
        if emissions is not None:
            state.hidden_PSU.index_copy_(1, slots, work.hidden_PBU)
            state.cell_PSU.index_copy_(1, slots, work.cell_PBU)
            state.output_SJ.index_copy_(0, slots, work.output_BJ)
        return emissions
