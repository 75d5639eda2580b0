"""Adapters are merged as training applied them, and only where they fit."""

import pytest
import torch

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.tensor_operations import common_rank, lora_rank, merge_lora, no_adapters


def test_merging_equals_applying():
    torch.manual_seed(0)
    weight, down, up = torch.randn(6, 5), torch.randn(2, 5), torch.randn(6, 2)
    x = torch.randn(3, 5)
    merged = merge_lora(weight, down, up, alpha=16.0)
    torch.testing.assert_close(x @ merged.T, x @ weight.T + 8.0 * (x @ down.T) @ up.T, rtol=1e-5, atol=1e-5)


def test_merging_rounds_once():
    torch.manual_seed(0)
    weight, down, up = (torch.randn(shape).bfloat16() for shape in ((64, 64), (8, 64), (64, 8)))
    exact = weight.double() + 2.0 * up.double() @ down.double()
    merged = merge_lora(weight, down, up, alpha=16.0)
    assert merged.dtype is torch.float32
    torch.testing.assert_close(merged.double(), exact, rtol=1e-5, atol=1e-4)
    # rounding the update before adding it, as a merge in 16 bit does, is visibly worse
    rounded = weight + 2.0 * (up @ down)
    assert (merged.bfloat16().double() - exact).abs().mean() < 0.9 * (rounded.double() - exact).abs().mean()


@pytest.mark.parametrize(
    ("weight", "down", "up"),
    [
        ((6, 5), (2, 6), (6, 2)),
        ((6, 5), (2, 5), (5, 2)),
        ((6, 5), (2, 5), (6, 3)),
        ((6, 5, 1), (2, 5), (6, 2)),
    ],
)
def test_shapes_that_do_not_fit(weight, down, up):
    with pytest.raises(ConversionError, match="adapter of 'q_proj' does not fit"):
        lora_rank(weight, down, up, "q_proj")


def test_one_rank_for_all():
    assert lora_rank((6, 5), (2, 5), (6, 2), "q_proj") == 2
    assert common_rank([8, 8]) == 8
    with pytest.raises(ConversionError, match=r"different ranks \(4, 8\)"):
        common_rank([8, 4, 8])


def test_no_alpha_is_made_up():
    with pytest.raises(ConversionError, match="unmerged adapters of rank 8"):
        no_adapters(8)
