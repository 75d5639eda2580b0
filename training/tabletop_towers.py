"""First stage of the embedded model: both image towers learn to see before anything is asked.

Seeing is the bottleneck of training from scratch (which of ten kinds is it?), and masks and words teach it slowly. So
each tower first names kind, colour, size and centre of what every patch shows; the linear heads for that are thrown
away afterwards.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling.modeling_gsva import GsvaForReasoningSegmentation
from .tabletop_scenes import COLOURS, SIZES, TabletopScene
from .tabletop_sprites import KINDS


CLASSES = {"kind": 1 + len(KINDS), "colour": 1 + len(COLOURS), "size": 1 + len(SIZES)}
# A patch of bare table still teaches something, but there are so many of them that they would drown the things.
BACKGROUND_WEIGHT = 0.05
CENTRE_WEIGHT = 5.0


class PatchHeads(nn.Module):
    """What a patch shows: the parts of each class in it, and where the centre of its thing lies."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASSES.items()})
        self.centre = nn.Linear(width, 2)

    def forward(self, tokens: torch.FloatTensor, labels: dict[str, torch.Tensor]) -> torch.FloatTensor:
        """
        Args:
            tokens (`torch.FloatTensor` of shape `(batch_size, patches, width)`): Patches in reading order.
            labels (`dict[str, torch.Tensor]`):
                Per class `(batch_size, patches, classes)` parts that add up to 1, `centre_xy`
                `(batch_size, patches, 2)`.
        """
        tokens = self.norm(tokens)
        foreground = 1 - labels["kind"][..., 0]
        weight = (foreground + BACKGROUND_WEIGHT) / (foreground + BACKGROUND_WEIGHT).sum()
        loss = (
            CENTRE_WEIGHT
            * (foreground * (self.centre(tokens) - labels["centre_xy"]).abs().sum(-1)).sum()
            / foreground.sum().clamp(min=1)
        )
        for name, classifier in self.classifiers.items():
            loss = loss - (weight * (labels[name] * classifier(tokens).log_softmax(-1)).sum(-1)).sum()
        return loss


class TowerPretraining(nn.Module):
    """
    Args:
        model ([`GsvaForReasoningSegmentation`]): Its two image encoders are trained in place.
    """

    def __init__(self, model: GsvaForReasoningSegmentation):
        super().__init__()
        self.vision_tower = model.vlm.model.vision_tower
        self.vision_encoder = model.segmenter.vision_encoder
        self.vlm_heads = PatchHeads(self.vision_tower.config.hidden_size)
        self.segmenter_heads = PatchHeads(self.vision_encoder.config.output_channels)

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        sam_pixel_values: torch.FloatTensor,
        vlm_labels: dict[str, torch.Tensor],
        segmenter_labels: dict[str, torch.Tensor],
    ) -> dict[str, Any]:
        patches = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]
        grid = self.vision_encoder(sam_pixel_values).last_hidden_state
        losses = {
            "vlm_loss": self.vlm_heads(patches, vlm_labels),
            "segmenter_loss": self.segmenter_heads(grid.flatten(2).transpose(1, 2), segmenter_labels),
        }
        return {"loss": sum(losses.values()), "losses": losses}


def patch_labels(scenes: Sequence[TabletopScene], side: int) -> dict[str, torch.Tensor]:
    """Dense labels of scenes averaged over a grid of `side` x `side` patches, as `PatchHeads` takes them."""
    labels = [scene.dense_labels() for scene in scenes]
    pooled = {}
    for name, count in CLASSES.items():
        classes = torch.stack([torch.from_numpy(label[name]) for label in labels])
        parts = F.one_hot(classes, count).permute(0, 3, 1, 2).float()
        pooled[name] = F.adaptive_avg_pool2d(parts, side).flatten(2).transpose(1, 2)
    foreground = (1 - pooled["kind"][..., :1]).clamp(min=1e-3)
    offsets = F.adaptive_avg_pool2d(torch.stack([torch.from_numpy(label["centre_xy"]) for label in labels]), side)
    pooled["centre_xy"] = offsets.flatten(2).transpose(1, 2) / foreground
    return pooled


class TowerCollator:
    """
    Args:
        image_processor: Makes both views of a picture.
        vlm_side, segmenter_side (`int`): Patches along a side of each view.
    """

    def __init__(self, image_processor, vlm_side: int, segmenter_side: int):
        self.image_processor = image_processor
        self.vlm_side = vlm_side
        self.segmenter_side = segmenter_side

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        scenes = [item["scene"] for item in items]
        views = self.image_processor([scene.image for scene in scenes], return_tensors="pt")
        return {
            "pixel_values": views["pixel_values"],
            "sam_pixel_values": views["sam_pixel_values"],
            "vlm_labels": patch_labels(scenes, self.vlm_side),
            "segmenter_labels": patch_labels(scenes, self.segmenter_side),
        }


__all__ = ["PatchHeads", "TowerCollator", "TowerPretraining", "patch_labels"]
