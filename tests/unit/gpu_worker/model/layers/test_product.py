"""Products with weights: any number of rows, with and without bias, in both ways of multiplying."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpu_worker.model.layers.product import Product

# Inputs and outputs: widths of `tiny`, one whose sums no vector instruction fills, and one too wide for bags.
SHAPES = ((192, 192), (192, 576), (768, 192), (2176, 192), (7, 5), (192, 768), (256, 1025))


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 17])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_product_is_that_of_a_linear_layer(
    inputs: int, outputs: int, num_rows: int, with_bias: bool
) -> None:
    weight, x = numbers(outputs, inputs), numbers(num_rows, inputs, seed=1)
    bias = numbers(outputs, seed=2) if with_bias else None
    total = numbers(num_rows, outputs, seed=3)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    product = Product(weight, bias)
    torch.testing.assert_close(product(x).double(), expected, rtol=1e-5, atol=1e-4)
    added = total.clone()
    product.add_to(added, x)
    torch.testing.assert_close(added.double(), total.double() + expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES[:5])
def test_a_row_of_few_is_the_same_to_the_last_bit_whatever_the_others(inputs: int, outputs: int) -> None:
    product, x = Product(numbers(outputs, inputs)), numbers(3, inputs, seed=1)
    alone = torch.cat([product(x[row : row + 1]) for row in range(3)])
    assert torch.equal(alone, product(x))
    assert torch.equal(alone[1:], product(x[1:]))


def test_axes_before_the_last_are_kept() -> None:
    weight, x = numbers(6, 4), numbers(2, 3, 4, seed=1)
    torch.testing.assert_close(Product(weight).over_last(x), F.linear(x, weight))


@pytest.mark.parametrize("num_rows", [2, 9])
def test_other_types_than_float32_are_multiplied_as_they_are(num_rows: int) -> None:
    weight, x = numbers(16, 8).bfloat16(), numbers(num_rows, 8, seed=1).bfloat16()
    found = Product(weight)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), F.linear(x.float(), weight.float()), rtol=2e-2, atol=2e-2)


def test_rows_that_are_no_block_of_memory_are_taken_as_they_are() -> None:
    weight, x = numbers(12, 8), numbers(8, 2, seed=1).t()
    torch.testing.assert_close(Product(weight)(x), F.linear(x, weight))
