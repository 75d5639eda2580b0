"""Last stage of training from scratch: the segmenter learns how good its own masks are.

The mask losses say nothing about SAM's IoU head. Published checkpoints inherit a trained one; here it is fitted,
alone, to the overlap of finished masks with their targets, so that scores mean what they mean elsewhere.
"""

import torch
import torch.nn.functional as F
from transformers import Trainer

from ..modeling.modeling_reasoning_segmentation import ComposedForReasoningSegmentation


# The head alone: all else, the IoU token included, has a part in the masks.
IOU_HEAD = r"segmenter\.mask_decoder\.iou_prediction_head\."


def mask_overlaps(pred_masks: torch.FloatTensor, targets: torch.FloatTensor) -> torch.FloatTensor:
    """
    Args:
        pred_masks (`torch.FloatTensor` of shape `(slots, height, width)`): Mask logits.
        targets (`torch.FloatTensor` of shape `(slots, target_height, target_width)`): In [0, 1].

    Returns:
        `torch.FloatTensor` of shape `(slots,)`: Intersection over union of the masks at the targets' size, in [0, 1].
    """
    logits = F.interpolate(pred_masks[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    drawn, wanted = logits > 0, targets > 0.5
    union = (drawn | wanted).flatten(1).sum(-1)
    return (drawn & wanted).flatten(1).sum(-1) / union.clamp(min=1)


class MaskScoreTrainer(Trainer):
    """Mean squared error between predicted and true overlap over all `[SEG]` slots; `IOU_HEAD` is to learn."""

    def compute_loss(
        self, model: ComposedForReasoningSegmentation, inputs, return_outputs: bool = False, num_items_in_batch=None
    ):
        outputs = model(**inputs)
        scores = torch.cat(list(outputs["mask_scores"]))
        with torch.no_grad():
            overlaps = [
                mask_overlaps(masks, targets.to(masks))
                for masks, targets in zip(outputs["pred_masks"], inputs["mask_labels"], strict=True)
            ]
            drawn = torch.cat([targets.flatten(1).amax(-1) > 0 for targets in inputs["mask_labels"]])
        errors = (scores - torch.cat(overlaps)).square() * drawn.to(scores)
        loss = errors.sum() / drawn.sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss


__all__ = ["IOU_HEAD", "MaskScoreTrainer", "mask_overlaps"]
