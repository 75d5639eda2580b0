"""The mask losses against values worked out by hand from their formulas."""

import math

import pytest
import torch

from reasonseg.modeling.mask_losses import bce_per_mask, check_targets, dice_per_mask, mean_over_masks


def test_bce_of_logit_zero_is_ln_2():
    logits, targets = torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)
    targets[1] = 1
    torch.testing.assert_close(bce_per_mask(logits, targets), torch.full((2,), math.log(2)))


def test_bce_averages_over_pixels():
    logits = torch.tensor([[[20.0, -20.0], [20.0, -20.0]]])
    targets = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    torch.testing.assert_close(bce_per_mask(logits, targets), torch.tensor([5.0]), atol=1e-4, rtol=1e-4)


def test_dice_of_half_right_mask():
    """4 of 8 target pixels found, nothing else: 1 - 2*4 / (4 + 8), up to the smoothing term."""
    logits, targets = torch.full((1, 4, 4), -50.0), torch.zeros(1, 4, 4)
    targets[0, :2] = 1
    logits[0, 0] = 50
    expected = 1 - (8 / 1000 + 1e-6) / (12 / 1000 + 1e-6)
    torch.testing.assert_close(dice_per_mask(logits, targets), torch.tensor([expected]), atol=1e-6, rtol=1e-5)


def test_dice_of_a_rejection_is_about_one():
    """Logit 0 against an empty target: the constant that GSVA's rejected slots add."""
    height, width = 40, 50
    expected = 1 - 1e-6 / (height * width / 2000 + 1e-6)
    loss = dice_per_mask(torch.zeros(1, height, width), torch.zeros(1, height, width))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_mean_over_masks():
    torch.testing.assert_close(mean_over_masks([torch.tensor([1.0, 2.0]), torch.tensor([6.0])]), torch.tensor(3.0))
    assert mean_over_masks([torch.zeros(0)]) == 0


@pytest.mark.parametrize("values", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_targets_of_every_number_format(values):
    for size in ((40, 50), (16, 16)):
        targets = torch.ones(2, *size).to(values)
        assert check_targets(targets, 0, (40, 50)) is targets
    check_targets(torch.ones(2, 3, 7).to(values), 0, None)
    check_targets(torch.tensor([[[-1e-6, 1 + 1e-6]]]), 0, None)
    check_targets(torch.rand(1, 20, 25), 0, (40, 50), any_size=True)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((1, 40, 50), 255, dtype=torch.uint8), r"row 3 have values from 255 to 255; .* by 255"),
        (torch.tensor([[[-0.5, 1.0]]]).expand(1, 50, 2)[:, :40].repeat(1, 1, 25), "from -0.5 to 1"),
        (torch.full((1, 40, 50), float("nan")), "values from nan to nan"),
        (torch.ones(1, 50, 40), r"row 3 are \(50, 40\) pixels \(height, width\), its upright image \(40, 50\)"),
        (torch.ones(1, 1, 50), r"are \(1, 50\) pixels"),
        (torch.ones(1, 40, 1), r"are \(40, 1\) pixels"),
        (torch.ones(40, 50), r"shape \(40, 50\); give \(masks, height, width\)"),
        (torch.ones(1, 0, 0), r"shape \(1, 0, 0\)"),
    ],
)
@pytest.mark.parametrize("any_size", [False, True])
def test_targets_that_would_train_something_else(targets, message, any_size):
    with pytest.raises(ValueError, match=message):
        check_targets(targets, 3, (40, 50), any_size)


def test_another_size_is_for_models_that_squeeze_images():
    with pytest.raises(ValueError, match="squeezed to a square"):
        check_targets(torch.ones(1, 20, 25), 0, (40, 50))
