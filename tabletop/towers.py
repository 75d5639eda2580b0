"""First stage of the embedded model: learn to see, and what words look like, before anything is asked.

Seeing is the bottleneck of training from scratch (which of ten kinds is it?), and answers and masks teach it slowly.
So this stage goes around the language model: patches name kind, colour and size of what they show with the very
word embeddings that questions are made of, and sums of a thing's words and its location draw what they describe. What
the language model has to learn then is to find words among patches.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling.modeling_gsva import GsvaForReasoningSegmentation
from ..modeling.segmenters import bce_per_mask, dice_per_mask, segmenter_adapter
from .dataset import TabletopExample
from .scenes import COLOURS, KINDS, SIZES, TabletopScene, scene_random


WORDS = {"kind": tuple(KINDS), "colour": tuple(COLOURS), "size": tuple(SIZES)}
BACKGROUND_WORD = "table"
# A patch of bare table still teaches something, but there are so many of them that they would drown the things.
BACKGROUND_WEIGHT = 0.05
CENTRE_WEIGHT = 5.0
# Of the comparison of patches with words. As a learned number it would grow until a hint of likeness is enough, and
# attention, which begins with what is alike, would find nothing.
WORD_SHARPNESS = 6.0
DESCRIPTIONS_PER_SCENE = 3
# Draw from what a phrase may say, and from where a thing is, alone and together.
DESCRIPTIONS = (
    ("kind",),
    ("colour",),
    ("colour", "kind"),
    ("centre_xy",),
    ("kind", "centre_xy"),
    ("size", "colour", "kind", "centre_xy"),
)
MASK_SIDE = 64
_DESCRIPTION_STREAM = (1 << 32) + (1 << 31)


def unit_rms(values: torch.FloatTensor) -> torch.FloatTensor:
    """As the language model's normalisation leaves its states."""
    return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6)


class PatchHeads(nn.Module):
    """What each patch of the segmenter's grid shows; thrown away after this stage."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, 1 + len(words)) for name, words in WORDS.items()})
        self.centre = nn.Linear(width, 2)

    def forward(self, tokens: torch.FloatTensor, labels: dict[str, torch.Tensor]) -> torch.FloatTensor:
        tokens = self.norm(tokens)
        loss = CENTRE_WEIGHT * centre_loss(self.centre(tokens), labels)
        weight = foreground_weight(labels)
        for name, classifier in self.classifiers.items():
            loss = loss - (weight * (labels[name] * classifier(tokens).log_softmax(-1)).sum(-1)).sum()
        return loss


def foreground_weight(labels: dict[str, torch.Tensor]) -> torch.FloatTensor:
    """Weight of each patch `(batch_size, patches)`, adding up to 1."""
    weight = 1 - labels["kind"][..., 0] + BACKGROUND_WEIGHT
    return weight / weight.sum()


def centre_loss(centres: torch.FloatTensor, labels: dict[str, torch.Tensor]) -> torch.FloatTensor:
    """Mean distance, as a fraction of the image's side, to the centre of the thing that a patch belongs to."""
    foreground = 1 - labels["kind"][..., 0]
    return (foreground * (centres - labels["centre_xy"]).abs().sum(-1)).sum() / foreground.sum().clamp(min=1)


class WordAlignment:
    """
    How close patches are to the words for what they show.

    Args:
        model ([`GsvaForReasoningSegmentation`]): Whose word embeddings count.
        word_ids (`dict[str, list[int]]`): Token ids of `WORDS`, and of the background under `background`.
    """

    def __init__(self, model: GsvaForReasoningSegmentation, word_ids: dict[str, list[int]]):
        self.embeddings, self.word_ids = model.get_input_embeddings(), word_ids

    def words(self, name: str) -> torch.FloatTensor:
        return unit_rms(self.embeddings.weight[self.word_ids[name]])

    def loss(self, patches: torch.FloatTensor, labels: dict[str, torch.Tensor]) -> torch.FloatTensor:
        """
        Args:
            patches (`torch.FloatTensor` of shape `(batch_size, patches, width)`): As the language model gets them.
            labels (`dict`): See [`patch_labels`].
        """
        weight, loss = foreground_weight(labels), 0.0
        for name in WORDS:
            words = torch.cat([self.words("background"), self.words(name)])
            scores = WORD_SHARPNESS * F.cosine_similarity(patches[..., None, :], words, dim=-1)
            loss = loss - (weight * (labels[name] * scores.log_softmax(-1)).sum(-1)).sum()
        return loss


class PatchGuidance:
    """
    [`WordAlignment`] as an auxiliary loss of the Trainer, of the patches of the forward pass just made.

    Args:
        model, word_ids: As in [`WordAlignment`].
        weight (`float`): Weight of the loss.
    """

    def __init__(self, model: GsvaForReasoningSegmentation, word_ids: dict[str, list[int]], weight: float = 1.0):
        self.alignment, self.weight = WordAlignment(model, word_ids), weight
        self._patches: torch.Tensor | None = None
        model.vlm.base_model.multi_modal_projector.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args, output: torch.Tensor) -> None:
        self._patches = output

    def __call__(self, inputs: dict, outputs, labels: dict) -> torch.FloatTensor:
        patches, self._patches = self._patches, None
        return self.weight * self.alignment.loss(patches, labels["patch_labels"])


class TowerPretraining(nn.Module):
    """
    Args:
        model ([`GsvaForReasoningSegmentation`]): Image encoders, projectors, mask decoder and word embeddings are
            trained in place; the language model's layers are not used.
        word_ids (`dict[str, list[int]]`): As in [`WordAlignment`].
    """

    def __init__(self, model: GsvaForReasoningSegmentation, word_ids: dict[str, list[int]]):
        super().__init__()
        self.model = model
        self.word_alignment = WordAlignment(model, word_ids)
        width = model.config.get_text_config().hidden_size
        self.patch_centre = nn.Linear(width, 2)
        self.location = nn.Linear(2, width)
        self.segmenter_heads = PatchHeads(model.config.segmenter_config.vision_config.output_channels)

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        sam_pixel_values: torch.FloatTensor,
        vlm_labels: dict[str, torch.Tensor],
        segmenter_labels: dict[str, torch.Tensor],
        things: dict[str, torch.Tensor],
    ) -> dict[str, Any]:
        patches = torch.stack(
            list(self.model.vlm.base_model.get_image_features(pixel_values, return_dict=True).pooler_output)
        )
        segmenter = segmenter_adapter(self.model.segmenter)
        features = segmenter.encode(sam_pixel_values)
        grid = features["image_embeddings"].flatten(2).transpose(1, 2)
        losses = {
            "word_loss": self._word_loss(patches, vlm_labels),
            "segmenter_loss": self.segmenter_heads(grid, segmenter_labels),
            **self._drawing_losses(segmenter, features, things),
        }
        return {"loss": sum(losses.values()), "losses": losses}

    def _word_loss(self, patches: torch.FloatTensor, labels: dict[str, torch.Tensor]) -> torch.FloatTensor:
        """Patches are close to the words for what they show, and know where the centre of their thing lies."""
        centres = CENTRE_WEIGHT * centre_loss(self.patch_centre(patches), labels)
        return centres + self.word_alignment.loss(patches, labels)

    def _drawing_losses(self, segmenter, features: dict[str, torch.Tensor], things: dict[str, torch.Tensor]) -> dict:
        """The words for a thing and its location, added up in place of the language model's state, draw its mask."""
        given = things["given"]
        state = given["centre_xy"][:, None] * self.location(things["centre_xy"])
        for name in WORDS:
            state = state + given[name][:, None] * self.word_alignment.words(name)[things[name]]
        prompts = self.model.seg_projector(unit_rms(state))
        masks, _ = segmenter.decode({name: value[things["scene"]] for name, value in features.items()}, prompts)
        config = self.model.config
        return {
            "mask_bce_loss": config.bce_loss_weight * bce_per_mask(masks, things["masks"]).mean(),
            "mask_dice_loss": config.dice_loss_weight * dice_per_mask(masks, things["masks"]).mean(),
        }


def patch_labels(scenes: Sequence[TabletopScene], side: int) -> dict[str, torch.Tensor]:
    """
    What the patches of a `side` x `side` grid show.

    Returns:
        Per class `(batch_size, patches, 1 + classes)`, the parts of the patch, background first; `centre_xy`
        `(batch_size, patches, 2)`, the centre of the thing as a part of the image's side.

    Raises:
        ValueError: If the side of the images is not a multiple of `side`.
    """
    labels = [scene.dense_labels() for scene in scenes]
    pooled = {}
    pixels = scenes[0].size // side
    if pixels * side != scenes[0].size:
        raise ValueError(f"Images of {scenes[0].size} pixels do not divide into {side} patches a side.")
    for name, words in WORDS.items():
        classes = torch.stack([torch.from_numpy(label[name]) for label in labels])
        patches = classes.view(-1, side, pixels, side, pixels).transpose(2, 3).reshape(-1, pixels**2)
        # Counting is several times faster than averaging one-hot maps.
        number = patches + (1 + len(words)) * torch.arange(len(patches))[:, None]
        counts = torch.bincount(number.flatten(), minlength=len(patches) * (1 + len(words)))
        pooled[name] = counts.view(len(scenes), side * side, 1 + len(words)) / pixels**2
    foreground = (1 - pooled["kind"][..., :1]).clamp(min=1e-3)
    offsets = F.adaptive_avg_pool2d(torch.stack([torch.from_numpy(label["centre_xy"]) for label in labels]), side)
    steps = (torch.arange(side) + 0.5) / side
    centres = torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=-1)
    pooled["centre_xy"] = offsets.flatten(2).transpose(1, 2) / foreground + centres
    return pooled


def _described(scene: TabletopScene, position: int, given: Sequence[str]) -> torch.FloatTensor:
    """The visible pixels of the thing at its location or, where that is not given, of all things that fit."""
    thing = scene.objects[position]
    alike = [
        other
        for other, candidate in enumerate(scene.objects)
        if all(getattr(candidate, name) == getattr(thing, name) for name in given)
    ]
    return torch.from_numpy(scene.mask(*alike)).float()


def described_things(scenes: Sequence[TabletopScene]) -> dict[str, Any]:
    """
    Some descriptions of things in each scene.

    Returns:
        `scene` (rows,), where each is; `given`, by part of the description (rows,) 1.0 where it is said; the places of
        its words in `WORDS`, `centre_xy` (rows, 2) and `masks` (rows, side, side).
    """
    rows = []
    for number, scene in enumerate(scenes):
        rng = scene_random(scene.split, scene.index, scene.seed, _DESCRIPTION_STREAM)
        for _ in range(DESCRIPTIONS_PER_SCENE):
            position, given = rng.below(len(scene.objects)), rng.choice(DESCRIPTIONS)
            thing = scene.objects[position]
            rows.append(
                (number, thing, [c / scene.size for c in thing.centre_xy], given, _described(scene, position, given))
            )
    return {
        "scene": torch.tensor([row[0] for row in rows]),
        **{name: torch.tensor([words.index(getattr(row[1], name)) for row in rows]) for name, words in WORDS.items()},
        "centre_xy": torch.tensor([row[2] for row in rows]),
        "given": {name: torch.tensor([float(name in row[3]) for row in rows]) for name in (*WORDS, "centre_xy")},
        "masks": F.adaptive_avg_pool2d(torch.stack([row[4] for row in rows]), MASK_SIDE),
    }


class TowerCollator:
    """
    Args:
        image_processor: Makes both views of an image.
        vlm_side, segmenter_side (`int`): Patches along a side of each view.
    """

    def __init__(self, image_processor, vlm_side: int, segmenter_side: int):
        self.image_processor = image_processor
        self.vlm_side = vlm_side
        self.segmenter_side = segmenter_side

    def __call__(self, examples: Sequence[TabletopExample]) -> dict[str, Any]:
        scenes = [example.scene for example in examples]
        views = self.image_processor([scene.image for scene in scenes], return_tensors="pt")
        return {
            "pixel_values": views["pixel_values"],
            "sam_pixel_values": views["sam_pixel_values"],
            "vlm_labels": patch_labels(scenes, self.vlm_side),
            "segmenter_labels": patch_labels(scenes, self.segmenter_side),
            "things": described_things(scenes),
        }


__all__ = [
    "BACKGROUND_WORD",
    "WORDS",
    "PatchGuidance",
    "TowerCollator",
    "TowerPretraining",
    "WordAlignment",
    "described_things",
    "patch_labels",
]
