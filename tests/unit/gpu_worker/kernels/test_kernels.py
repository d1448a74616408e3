"""Kernels against their references, a few awkward shapes each, in Triton's interpreter."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("no Triton on this platform", allow_module_level=True)

import gpu_worker.kernels as kernels_package
from tests.contracts import kernel_checks as checks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HUGE = checks.UNKNOWN_END
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(7)


def test_every_kernel_has_a_reference_that_it_is_checked_against() -> None:
    kernels = {path.stem for path in Path(kernels_package.__file__).parent.glob("*.py")} - {"__init__"}
    assert {f"{name}_reference" for name in kernels} == {
        name for name in vars(checks) if name.endswith("_reference")
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 192), (13, 40)])
def test_layer_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    checks.check_layer_norm(rows, width, dtype, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conv_module_moves_each_cache_by_its_own_frames(dtype: torch.dtype) -> None:
    checks.check_conv_module([3, 0, 1, 12], 12, 40, 9, dtype, DEVICE)
    checks.check_conv_module([1], 1, 64, 5, dtype, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subsampling_at_both_ends_of_streams(dtype: torch.dtype) -> None:
    checks.check_subsampling([0, 0, 7, 3], [HUGE, 5, HUGE, 29], 2, 20, 24, dtype, DEVICE)
    checks.check_subsampling([0], [1], 1, 16, 16, dtype, DEVICE)


def test_begin_streams_touches_only_new_ones() -> None:
    checks.check_begin_streams([0, 4, 0], 2, 40, 24, DEVICE)


def test_gather_samples_around_the_ring() -> None:
    checks.check_gather_samples([-5, 3, 17, 100], [HUGE, 9, 17, 103], 19, 23, DEVICE)


def test_log_mel_at_both_ends_of_streams() -> None:
    checks.check_log_mel([0, 4, 9, 0], [2, 1, 0, 2], [HUGE, HUGE, HUGE, 777], 2, 20, DEVICE)


# The interpreter multiplies bf16 matrices wrongly; float16 takes the same code.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("head_major", [False, True])
def test_paged_attention_over_rings(dtype: torch.dtype, head_major: bool) -> None:
    checks.check_paged_attention(
        [0, 6, 30, 100],
        [2, 4, 0, 3],
        num_rows=4,
        heads=2,
        width=24,
        page=4,
        chunk=2,
        left=10,
        head_major=head_major,
        dtype=dtype,
        device=DEVICE,
    )


def test_paged_attention_with_one_frame_and_one_page() -> None:
    checks.check_paged_attention(
        [0, 5, 71],
        [1, 1, 1],
        num_rows=1,
        heads=1,
        width=48,
        page=71,
        chunk=1,
        left=70,
        head_major=False,
        dtype=torch.float32,
        device=DEVICE,
    )


@pytest.mark.parametrize(("layers", "end_ids"), [(1, ()), (2, (3, 5))])
def test_greedy_decode(layers: int, end_ids: tuple[int, ...]) -> None:
    symbols = checks.check_greedy_decode(
        [4, 0, 1, 3, 4, 4],
        num_rows=4,
        layers=layers,
        width=40,
        joint=24,
        symbols=17,
        blank_bias=8.0,
        end_ids=end_ids,
        device=DEVICE,
    )
    assert 3 < symbols < 48


@pytest.mark.parametrize(
    ("own", "common"),
    [
        ([True] * 6, False),
        ([False, True, True, False, False, True], True),
        ([True, False, False, False, True, False], False),
        ([False] * 6, False),
    ],
)
def test_greedy_decode_with_phrases(own: list[bool], common: bool) -> None:
    symbols = checks.check_greedy_decode(
        [4, 0, 1, 3, 4, 4],
        num_rows=4,
        layers=1,
        width=40,
        joint=24,
        symbols=77,
        blank_bias=0.5,
        end_ids=(3, 5),
        device=DEVICE,
        own_trees=own,
        common_tree=common,
    )
    assert symbols > 3


def test_greedy_decode_leaves_a_frame_after_max_symbols() -> None:
    symbols = checks.check_greedy_decode(
        [2, 1],
        num_rows=2,
        layers=1,
        width=16,
        joint=16,
        symbols=9,
        blank_bias=-1e4,
        end_ids=(),
        device=DEVICE,
    )
    assert symbols == 3 * 3
