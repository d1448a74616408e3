"""Products with weights: any number of rows, with and without bias, of weights of 32 and of 16 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from gpu_worker.model.layers import product as product_module
from gpu_worker.model.layers.product import Product
from gpu_worker.model.model import StreamingModel
from tests.oracle.models import tiny

# Inputs and outputs: widths of `tiny`, one whose sums no vector instruction fills, and long sums.
SHAPES = ((192, 192), (192, 576), (768, 192), (2176, 192), (7, 5), (192, 768), (256, 1025))
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines

Numbers = Callable[..., torch.Tensor]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Products of one thread keep weights of 16 bits alone; with more threads they keep both."""
    count: int = request.param
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    return count


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def halves(*shape: int, seed: int = 0) -> torch.Tensor:
    return numbers(*shape, seed=seed).half().float()


def is_packed(product: Product) -> bool:
    return product._halves is not None


@pytest.mark.parametrize("make", [numbers, halves])
@pytest.mark.parametrize(("with_bias", "scale"), [(False, 1.0), (True, 1.0), (True, 0.5)])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_product_is_that_of_a_linear_layer(
    inputs: int, outputs: int, with_bias: bool, scale: float, make: Numbers
) -> None:
    weight, bias = make(outputs, inputs), numbers(outputs, seed=2) if with_bias else None
    product = Product(weight, bias, scale=scale)
    atol = 1e-5 * inputs**0.5  # of sums whose terms are as large as 1
    for num_rows in (1, 2, 17):
        x, total = numbers(num_rows, inputs, seed=1), numbers(num_rows, outputs, seed=3)
        expected = scale * F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        torch.testing.assert_close(product(x).double(), expected, rtol=1e-5, atol=atol)
        added = total.clone()
        product.add_to(added, x)
        torch.testing.assert_close(added.double(), total.double() + expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_row_of_halves_is_the_same_to_the_last_bit_whatever_the_others(
    inputs: int, outputs: int, threads: int
) -> None:
    product = Product(halves(outputs, inputs))
    if not is_packed(product):
        return
    # With more threads many rows are multiplied by the matrix library.
    x = numbers(97 if threads == 1 else product_module._MAX_ROWS_OF_A_THREAD, inputs, seed=1)
    whole = product(x)
    for num_rows in (1, 2, 5, 14, 15):
        for first in (0, 1):
            part = slice(first, first + num_rows)
            assert torch.equal(product(x[part]), whole[part])


def test_no_half_is_rounded() -> None:
    weight = torch.tensor([[65504.0, -(2.0**-24), 0.0], [2.0**-14, 1.0009765625, -0.0]])
    assert is_packed(Product(weight)) == HAS_FBGEMM
    assert torch.equal(Product(weight)(torch.eye(3)), weight.t())
    # Half of the smallest number is no float16, so the factor is none of the weights.
    halved = Product(weight, scale=0.5)
    assert is_packed(halved) == HAS_FBGEMM
    assert torch.equal(halved(torch.eye(3)), weight.t() * 0.5)


@pytest.mark.parametrize("odd", [1.0 + 2.0**-11, 65536.0, 2.0**-25, float("inf"), float("nan")])
def test_weights_that_are_not_all_halves_stay_as_they_are(odd: float) -> None:
    weight = halves(4, 3)
    weight[1, 2] = odd
    product = Product(weight)
    assert not is_packed(product)
    x = numbers(2, 3, seed=1)
    torch.testing.assert_close(product(x), F.linear(x, weight), equal_nan=True)


def test_a_processor_that_fbgemm_does_not_know_multiplies_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(product_module, "_can_pack", lambda: False)
    weight, x = halves(6, 4), numbers(2, 4, seed=1)
    product = Product(weight)
    assert not is_packed(product)
    torch.testing.assert_close(product(x), F.linear(x, weight))


def test_the_weights_of_the_bundled_model_are_halves() -> None:
    model = StreamingModel(tiny())
    layer = model.encoder.layers[0]
    products = [
        layer._feed_forward_in._in,
        layer._feed_forward_in._half_out,
        layer._attention._qkv,
        layer._attention._out,
        layer._conv._in,
        layer._conv._out,
        model.joint._encoder,
        model.joint._out,
    ]
    assert [is_packed(product) for product in products] == [HAS_FBGEMM] * len(products)


def test_axes_before_the_last_are_kept() -> None:
    weight, x = numbers(6, 4), numbers(2, 3, 4, seed=1)
    torch.testing.assert_close(Product(weight).over_last(x), F.linear(x, weight))


@pytest.mark.parametrize("num_rows", [2, 9])
def test_other_types_than_float32_are_multiplied_as_they_are(num_rows: int) -> None:
    weight, x = numbers(16, 8).bfloat16(), numbers(num_rows, 8, seed=1).bfloat16()
    found = Product(weight)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), F.linear(x.float(), weight.float()), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("make", [numbers, halves])
def test_rows_that_are_no_block_of_memory_are_taken_as_they_are(make: Numbers) -> None:
    weight, x = make(12, 8), numbers(8, 2, seed=1).t()
    torch.testing.assert_close(Product(weight)(x), F.linear(x, weight))
