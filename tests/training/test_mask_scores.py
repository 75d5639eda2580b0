"""The last stage: the IoU head learns what its masks are worth, and nothing else changes."""

import pytest
import torch

from reasonseg.tabletop.dataset import TabletopDataset
from reasonseg.training.collator import SegmentationCollator
from reasonseg.training.mask_scores import IOU_HEAD, MaskScoreTrainer, mask_overlaps
from reasonseg.training.trained_parameters import select_trained
from tests.training.test_trainer import arguments, model, processor  # noqa: F401  (fixtures)


def test_overlaps():
    logits = torch.full((3, 2, 2), -1.0)
    logits[0, 0], logits[1] = 1.0, 1.0
    targets = torch.zeros(3, 2, 2)
    targets[0], targets[1] = 1.0, 1.0
    torch.testing.assert_close(mask_overlaps(logits, targets), torch.tensor([0.5, 1.0, 0.0]))


@pytest.mark.slow
def test_only_the_head_learns_and_scores_come_closer(model, processor, tmp_path):  # noqa: F811
    with torch.no_grad():
        model.segmenter.mask_decoder.iou_prediction_head.proj_out.bias.add_(2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert select_trained(model, [IOU_HEAD]) > 0
    trainer = MaskScoreTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=40, save_strategy="no", learning_rate=1e-2),
        train_dataset=TabletopDataset("train", 2, size=64, requests_per_scene=2, fresh_requests=False),
        data_collator=SegmentationCollator(processor, mask_size=16),
    )
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("iou_prediction_head" in name for name in changed)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0]
