"""All that the model remembers of a stream, in tensors whose rows are slots.

One spare slot past the last real one takes what padding rows of a batch write.  Keys and values are
not here: they stand in pages (`KVPages`) that a stream takes as it grows.

Shape legend: S slots, L encoder layers, D model width, K - 1 cached frames of the depthwise
convolution, Z kept samples, F mel bins, G bins and C channels of a subsampling level, P predictor
layers, U predictor width, J joint width, N pages, W page frames, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu_worker.model.config import ModelConfig


class HostCopy:
    """Copies of tensors of one device on their way to the host, side by side in one buffer.

    From a GPU they go to pinned memory, behind what runs there by now, and nobody waits for them before
    `buffers`: a copy to pageable memory would be staged and waited for.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        parts = {name: tensor.detach().reshape(-1).view(torch.uint8) for name, tensor in tensors.items()}
        self._sizes = {name: part.shape[0] for name, part in parts.items()}
        self._done: torch.cuda.Event | None = None
        self._bytes = torch.cat(list(parts.values()))
        if self._bytes.device.type == "cuda":
            # A thread's current device is the first one until it says otherwise; events follow it.
            with torch.cuda.device(self._bytes.device):
                pinned = torch.empty(self._bytes.shape, dtype=torch.uint8, pin_memory=True)
                self._bytes = pinned.copy_(self._bytes, non_blocking=True)
                self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                self._done.record()

    def buffers(self) -> dict[str, memoryview]:
        """Return the bytes of each tensor, on the host; waits for them, in any thread."""
        if self._done is not None:
            self._done.synchronize()
        whole, at = self._bytes.numpy().data, 0
        found: dict[str, memoryview] = {}
        for name, size in self._sizes.items():
            found[name] = whole[at : at + size]
            at += size
        return found


def from_buffer(name: str, data: memoryview | None, like: Tensor) -> Tensor:
    """Return a tensor on the host of the shape and type of `like`, out of the bytes that a `HostCopy` gave.

    Raises ValueError for another size.
    """
    if data is None or len(data) != like.numel() * like.element_size():
        raise ValueError(f"the state's '{name}' does not fit this model")
    return torch.frombuffer(bytearray(data), dtype=like.dtype).view(like.shape)


@dataclass(frozen=True, slots=True)
class PredictorStart:
    """State of the predictor before any token: hidden_PU, cell_PU and the projected output_J."""

    hidden_PU: Tensor
    cell_PU: Tensor
    output_J: Tensor


@dataclass(frozen=True, slots=True)
class SlotState:
    """Slot-indexed state; `reset` gives a slot to a new stream, `rows` and `load` move one.

    node_SM: states in the boosting trees, of a stream's own phrases and of everybody's (M = 2), int32.
    num_prompts: that the model knows, 1 for a model without any.
    """

    tail_SZ: Tensor
    mel_SF: Tensor
    levels_SGC: tuple[Tensor, ...]
    conv_LSKD: Tensor
    hidden_PSU: Tensor
    cell_PSU: Tensor
    output_SJ: Tensor
    prompt_S: Tensor
    node_SM: Tensor
    start: PredictorStart
    default_prompt: int
    num_prompts: int

    @property
    def spare_slot(self) -> int:
        """The slot that no stream has."""
        return self.tail_SZ.shape[0] - 1

    def rows(self, slot: int, *, whole: bool = True) -> dict[str, Tensor]:
        """Name and view of every tensor's part that belongs to one slot.

        whole: with those that are functions of the last seconds of audio; what is left without them is not.
        """
        rows = {
            "hidden": self.hidden_PSU[:, slot],
            "cell": self.cell_PSU[:, slot],
            "output": self.output_SJ[slot],
            "prompt": self.prompt_S[slot],
            "node": self.node_SM[slot],
        }
        if whole:
            rows |= {"tail": self.tail_SZ[slot], "mel": self.mel_SF[slot], "conv": self.conv_LSKD[:, slot]}
            rows |= {f"level{number}": level[slot] for number, level in enumerate(self.levels_SGC)}
        return rows

    def reset(self, slots: Tensor) -> None:
        """Bring slots to the state of a stream that has heard nothing."""
        self.tail_SZ.index_fill_(0, slots, 0.0)
        self.mel_SF.index_fill_(0, slots, 0.0)
        for level in self.levels_SGC:
            level.index_fill_(0, slots, 0.0)
        self.conv_LSKD.index_fill_(1, slots, 0.0)
        count = slots.shape[0]
        self.hidden_PSU.index_copy_(1, slots, self.start.hidden_PU.unsqueeze(1).repeat(1, count, 1))
        self.cell_PSU.index_copy_(1, slots, self.start.cell_PU.unsqueeze(1).repeat(1, count, 1))
        self.output_SJ.index_copy_(0, slots, self.start.output_J.repeat(count, 1))
        self.prompt_S.index_fill_(0, slots, self.default_prompt)
        self.node_SM.index_fill_(0, slots, 0)

    def load(self, slot: int, state: Mapping[str, memoryview], *, whole: bool = True) -> None:
        """Put copies of `rows` into a slot.  Raises ValueError when they do not fit."""
        rows = self.rows(slot, whole=whole)
        found = {name: from_buffer(name, state.get(name), row) for name, row in rows.items()}
        # What a device looks up unseen: one number beyond its table ends the process.
        if not 0 <= int(found["prompt"]) < self.num_prompts or bool((found["node"] < 0).any()):
            raise ValueError("the state's 'prompt' or 'node' does not fit this model")
        for name, row in rows.items():
            row.copy_(found[name])


class PagedModel(Protocol):
    """What the pages of a model depend on."""

    @property
    def config(self) -> ModelConfig:
        """Sizes of the layers."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of keys and values."""

    @property
    def device(self) -> torch.device:
        """The device of all these tensors."""


@dataclass(frozen=True, slots=True)
class KVPages:
    """Keys and values of all layers in pages; the last page takes what padding frames write.

    The pages of a layer are seen as [N, W, H, E] and stand in memory as [N, H, W, E], so that a page's
    heads are contiguous.
    """

    keys_LNWHE: Tensor
    values_LNWHE: Tensor

    @classmethod
    def allocate(
        cls,
        *,
        num_layers: int,
        num_pages: int,
        page_frames: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVPages:
        """Zeroed pages: what is masked out is multiplied by zero, so it must be finite."""
        shape = (num_layers, num_pages + 1, num_heads, page_frames, head_dim)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return cls(keys.transpose(2, 3), torch.zeros_like(keys).transpose(2, 3))

    @classmethod
    def for_model(cls, model: PagedModel, num_pages: int, page_frames: int) -> KVPages:
        """Pages for all layers of a model, and a spare one."""
        return cls.allocate(
            num_layers=model.config.num_layers,
            num_pages=num_pages,
            page_frames=page_frames,
            num_heads=model.config.num_heads,
            head_dim=model.config.head_dim,
            dtype=model.dtype,
            device=model.device,
        )

    @property
    def num_pages(self) -> int:
        """Pages that streams can take."""
        return self.keys_LNWHE.shape[1] - 1

    @property
    def page_frames(self) -> int:
        """Encoder frames of a page."""
        return self.keys_LNWHE.shape[2]

    @property
    def spare_page(self) -> int:
        """The page that no stream has."""
        return self.num_pages

    def rows(self, pages: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Return the `keys` and `values` at (page, offset), [L, n, H, E]."""
        return {
            "keys": self.keys_LNWHE[:, pages, offsets],
            "values": self.values_LNWHE[:, pages, offsets],
        }

    def load(self, pages: Tensor, offsets: Tensor, state: Mapping[str, memoryview]) -> None:
        """Put copies of `rows` at (page, offset).  Raises ValueError when they do not fit."""
        layers, _, _, heads, width = self.keys_LNWHE.shape
        shape = (layers, pages.shape[0], heads, width)
        like = torch.empty(shape, dtype=self.keys_LNWHE.dtype, device="meta")
        keys, values = (from_buffer(name, state.get(name), like) for name in ("keys", "values"))
        self.keys_LNWHE[:, pages, offsets] = keys.to(self.keys_LNWHE.device)
        self.values_LNWHE[:, pages, offsets] = values.to(self.values_LNWHE.device)
