"""Kernels on the device against their references, at shapes of the real models and awkward ones."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from tests.contracts import kernel_checks as checks

DTYPES = [torch.float32, torch.bfloat16]
HUGE = checks.UNKNOWN_END


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 512), (257, 512), (1000, 1024), (33, 192), (7, 40)])
def test_layer_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    checks.check_layer_norm(rows, width, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [40, 192, 512, 1024])
@pytest.mark.parametrize("num_rows", [1, 2, 14])
def test_conv_module(num_rows: int, width: int, dtype: torch.dtype) -> None:
    frames = [num_rows, 0, 1, num_rows, num_rows // 2]
    checks.check_conv_module(frames, num_rows, width, 9, dtype, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [24, 128, 256])
@pytest.mark.parametrize("num_frames", [1, 2, 14])
def test_subsampling(num_frames: int, channels: int, dtype: torch.dtype) -> None:
    checks.check_subsampling([0, 0, 7, 3], [HUGE, 5, HUGE, 29], num_frames, 128, channels, dtype, "cuda")


@pytest.mark.parametrize("num_frames", [1, 2, 14])
def test_log_mel(num_frames: int) -> None:
    frames = [num_frames, 1, 0, num_frames]
    checks.check_log_mel([0, 4, 9, 0], frames, [HUGE, HUGE, HUGE, 777], num_frames, 128, "cuda")


def test_begin_streams_touches_only_new_ones() -> None:
    checks.check_begin_streams([0, 4, 0, 1, 0], 2, 640, 640, "cuda")


def test_gather_samples_from_pinned_memory() -> None:
    checks.check_gather_samples([-1080, 200, 999_999, 5], [HUGE, 1500, HUGE, 5], 2880, 7001, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_major", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "chunk", "left", "page", "heads", "width"),
    [
        (1, 1, 70, 16, 8, 128),
        (2, 2, 70, 16, 8, 64),
        (14, 14, 70, 4, 8, 128),
        (8, 2, 70, 78, 4, 48),
        (70, 7, 70, 5, 2, 16),
    ],
)
def test_paged_attention(
    num_rows: int,
    chunk: int,
    left: int,
    page: int,
    heads: int,
    width: int,
    head_major: bool,
    dtype: torch.dtype,
) -> None:
    starts = [0, chunk, 10 * chunk, 35 * chunk, 1000 * chunk]
    frames = [num_rows, max(1, num_rows - 1), 0, num_rows, 1]
    checks.check_paged_attention(
        starts,
        frames,
        num_rows=num_rows,
        heads=heads,
        width=width,
        page=page,
        chunk=chunk,
        left=left,
        head_major=head_major,
        dtype=dtype,
        device="cuda",
    )


@pytest.mark.parametrize(
    ("layers", "width", "joint", "symbols"),
    [(1, 640, 640, 1027), (2, 640, 640, 1025), (1, 256, 256, 514), (2, 40, 24, 17)],
)
@pytest.mark.parametrize("streams", [1, 17, 70])
def test_greedy_decode(layers: int, width: int, joint: int, symbols: int, streams: int) -> None:
    frames = [(3 * stream) % 5 for stream in range(1, streams + 1)]
    emitted = checks.check_greedy_decode(
        frames,
        num_rows=4,
        layers=layers,
        width=width,
        joint=joint,
        symbols=symbols,
        blank_bias=2.2 * joint**0.5,
        end_ids=(3, 5),
        device="cuda",
    )
    assert 0 < emitted < 3 * sum(frames) or streams == 1


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(("streams", "every"), [(1, 1), (40, 40), (40, 1), (100, 3)])
def test_greedy_decode_with_phrases(streams: int, every: int, common: bool) -> None:
    """With blocks of which some rows, all, or none have a tree of their own."""
    emitted = checks.check_greedy_decode(
        [2 + stream % 3 for stream in range(streams)],
        num_rows=4,
        layers=1,
        width=640,
        joint=640,
        symbols=1027,
        blank_bias=2.2 * 640**0.5,
        end_ids=(3, 5),
        device="cuda",
        own_trees=[stream % every == 0 for stream in range(streams)],
        common_tree=common,
    )
    assert emitted > 0 or streams == 1
