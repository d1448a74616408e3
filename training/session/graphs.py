"""The encoder for each bucket: compiled kernels captured as a CUDA graph; plain modules on a CPU.

An encoder of 12M parameters is a thousand small kernels, and launching them takes longer than running them.
Compiling takes about 45 s a bucket; it can go on while the speech is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from training.data.batches import Buckets
from training.model.conformer import ConformerLayer, Encoder
from training.model.subsampling import Subsampling

EncoderCall = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class _Captured(nn.Module):
    """A module whose `forward` capturing replaces; the encoder's own `forward` stays for evaluation."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, mel: Tensor, num_mels: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out: tuple[Tensor, Tensor, Tensor] = self.encoder(mel, num_mels, right)
        return out


def encoders(
    encoder: Encoder, buckets: Buckets, num_mel_bins: int, *, graphs: bool
) -> dict[int, EncoderCall]:
    """Return the callable of each bucket: captured graphs on CUDA if wanted, else the encoder itself."""
    device = encoder.pre_encode.out.weight.device
    if device.type == "cuda" and graphs:
        return captured_encoders(encoder, buckets, num_mel_bins, device)
    return dict.fromkeys(buckets.num_mels, encoder)


def captured_encoders(
    encoder: Encoder, buckets: Buckets, num_mel_bins: int, device: torch.device
) -> dict[int, EncoderCall]:
    """Return a graph for each bucket, the longest first, in one pool of memory.

    The parameters' storage must not move afterwards: make flat buffers before.
    """
    pool = torch.cuda.graph_pool_handle()
    calls: dict[int, EncoderCall] = {}
    with _compiled(ConformerLayer), _compiled(Subsampling):
        for num_mels in sorted(buckets.num_mels, reverse=True):
            size = buckets.size(num_mels)
            example = (
                torch.randn(size, num_mels, num_mel_bins, device=device),
                torch.full((size,), num_mels, device=device),
                torch.tensor(13, device=device),
            )
            module = _Captured(encoder).train()
            with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
                calls[num_mels] = cast(
                    EncoderCall, torch.cuda.make_graphed_callables(module, example, pool=pool)
                )
    return calls


@contextmanager
def _compiled(kind: type[nn.Module]) -> Iterator[None]:
    """Compile the `forward` of a class for fixed shapes while the block runs."""
    original = kind.forward
    torch._dynamo.config.cache_size_limit = 64
    kind.forward = torch.compile(original, dynamic=False)
    try:
        yield
    finally:
        kind.forward = original
