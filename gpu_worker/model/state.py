"""The model's state of the streams, in tensors whose rows are slots.

The padding rows of a batch write to one spare slot after the last real one. Keys and values are kept apart,
in pages (`KVPages`) that a stream takes as it grows.

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

    Copies from a GPU go to pinned memory, after the work that is queued there, and only `buffers` waits for
    them. A copy to pageable memory would be staged, and the caller would wait for it.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        parts = {name: tensor.detach().reshape(-1).view(torch.uint8) for name, tensor in tensors.items()}
        self._sizes = {name: part.shape[0] for name, part in parts.items()}
        self._done: torch.cuda.Event | None = None
        self._bytes = torch.cat(list(parts.values()))
        if self._bytes.device.type == "cuda":
            # A thread's current device is the first one by default, and an event belongs to the current
            # device.
            with torch.cuda.device(self._bytes.device):
                pinned = torch.empty(self._bytes.shape, dtype=torch.uint8, pin_memory=True)
                self._bytes = pinned.copy_(self._bytes, non_blocking=True)
                self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                self._done.record()

    def buffers(self) -> dict[str, memoryview]:
        """Wait for the copies and return the bytes of each tensor, on the host. For any thread."""
        if self._done is not None:
            self._done.synchronize()
        whole, at = self._bytes.numpy().data, 0
        found: dict[str, memoryview] = {}
        for name, size in self._sizes.items():
            found[name] = whole[at : at + size]
            at += size
        return found


def from_buffer(name: str, data: memoryview | None, like: Tensor) -> Tensor:
    """Return a tensor on the host, of the shape and type of `like`, from the bytes of a `HostCopy`.

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
    """Slot-indexed state; `reset` prepares slots for new streams, `rows` and `load` move a stream's state.

    node_SM: states in the boosting trees of the stream's own phrases and of the shared phrases (M = 2),
    int32.
    num_prompts: number of the model's language prompts, 1 for a model without any.
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
        """The slot that no stream uses."""
        return self.tail_SZ.shape[0] - 1

    def rows(self, slot: int, *, whole: bool = True) -> dict[str, Tensor]:
        """Return a view of each tensor's part for one slot, by name.

        whole: include the tensors that can be computed again from the last seconds of audio.
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
        """Reset slots to the state of a stream without audio."""
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
        # The device indexes tables by these numbers unchecked: one out of range ends the process.
        if not 0 <= int(found["prompt"]) < self.num_prompts or bool((found["node"] < 0).any()):
            raise ValueError("the state's 'prompt' or 'node' does not fit this model")
        for name, row in rows.items():
            row.copy_(found[name])


class PagedModel(Protocol):
    """The properties of a model that its pages depend on."""

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
    """Keys and values of all layers in pages; padding frames write to the last page.

    The pages of a layer have the shape [N, W, H, E] and the memory layout [N, H, W, E], so that a page's
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
        """Return zeroed pages: masked values are multiplied by zero, so they must be finite."""
        shape = (num_layers, num_pages + 1, num_heads, page_frames, head_dim)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return cls(keys.transpose(2, 3), torch.zeros_like(keys).transpose(2, 3))

    @classmethod
    def for_model(cls, model: PagedModel, num_pages: int, page_frames: int) -> KVPages:
        """Return pages for all layers of a model, and a spare page."""
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
        """Number of pages that streams can take."""
        return self.keys_LNWHE.shape[1] - 1

    @property
    def page_frames(self) -> int:
        """Encoder frames of a page."""
        return self.keys_LNWHE.shape[2]

    @property
    def spare_page(self) -> int:
        """The page that no stream uses."""
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
