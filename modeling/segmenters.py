"""Segmenters of the SAM family: one adapter for each, and what their masks cost beside targets."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


ImageFeatures = dict[str, torch.Tensor]

# What of an image encoder can be in 16 bit. Its norms, positions and the sums along its depth stay in float32.
_MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
# bfloat16 has eight significant bits: queries, keys, positions and neck rounded to it move the edges of masks more
# than is allowed (the recorded LISA's mean IoU with float32 falls to 0.991). These two thirds of the matrices may be.
_FEED_FORWARD = "mlp"
# Numbers that say where a query lies beside a key: of all heads in a global layer of SAM ViT-H, for one image, 1.1 GB.
# In inference so many are made at once, which are those of two heads.
_POSITIONS_AT_ONCE = 2 * 4096**2
_SLOW_FLOAT16 = (
    "The segmenter's image encoder computes in float16, in which processors are slower than in float32. Load the "
    'model with segmenter_dtype="float32" or "bfloat16".'
)

# LISA/model/LISA.py: dice sums are divided by this scale before the smoothing term is added, and the mean over masks
# divides by their number plus the same small term.
DICE_SCALE = 1000.0
SMOOTHING = 1e-6
COUNT_EPS = 1e-8
# Prompts that are decoded at once outside of training (SAM: about 50 MB each).
DRAWN_AT_ONCE = 16
# sam3_tracker_base.py: every logit of the mask of a thing that is not there.
NO_OBJECT = -1024.0
# How far outside [0, 1] targets may lie: resizing rounds.
ROUNDING = 1e-4


@dataclass(frozen=True)
class SegmenterPrompt:
    """
    What one mask is asked for with: points, a box or a soft mask, or several of these together.

    Args:
        points (`Sequence[tuple[float, float]]`): (x, y) in pixels of the segmenter's view; may lie outside.
        point_labels (`Sequence[int]`): One per point: 1 on the thing itself, 0 on the background.
        box (`Sequence[float]`, *optional*): (x1, y1, x2, y2) there.
        mask (`torch.FloatTensor` of shape `(height, width)`, *optional*): Logits, of the adapter's `mask_size`.
    """

    points: Sequence[tuple[float, float]] = ()
    point_labels: Sequence[int] = ()
    box: Sequence[float] | None = None
    mask: torch.FloatTensor | None = None

    @property
    def kind(self) -> tuple[int, bool, bool]:
        """What prompts that are drawn together have in common."""
        return len(self.points), self.box is not None, self.mask is not None


class SamAdapter:
    """
    Encodes an image once and draws any number of masks in it with a stock `segmenter`. This is SAM's; the other
    families differ in what their encoder returns and their decoder takes.
    """

    def __init__(self, segmenter: PreTrainedModel):
        self.segmenter = segmenter

    @property
    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the low-resolution masks: four times the grid of image embeddings."""
        height, width = self.segmenter.prompt_encoder.image_embedding_size
        return 4 * height, 4 * width

    @property
    def scores_objects(self) -> bool:
        """Whether the segmenter says how sure it is that a thing is there at all."""
        return hasattr(self.segmenter.mask_decoder, "pred_obj_score_head")

    @property
    def num_candidates(self) -> int:
        """How many masks `draw` offers for a prompt."""
        return self.segmenter.config.mask_decoder_config.num_multimask_outputs

    @property
    def dtype(self) -> torch.dtype:
        """What prompts, the decoder and its masks are computed in."""
        return next(self.segmenter.mask_decoder.parameters()).dtype

    @property
    def encoder_dtype(self) -> torch.dtype:
        """What the image encoder is in: float32, or the 16-bit type of those of its matrices that have one."""
        modules = self.segmenter.vision_encoder.modules()
        dtypes = (module.weight.dtype for module in modules if isinstance(module, _MATRICES))
        return min(dtypes, key=lambda dtype: dtype.itemsize)

    def encode(self, pixel_values: torch.FloatTensor) -> ImageFeatures:
        """What the decoder needs of the segmenter's views `(num_images, 3, side, side)`, images along dimension 0."""
        encoder, device = self.segmenter.vision_encoder, pixel_values.device.type
        if self.encoder_dtype != torch.float16 or self.dtype == torch.float16:
            return self.features(encoder(pixel_values))
        if device == "cpu" and not torch.compiler.is_compiling():
            warnings.warn(_SLOW_FLOAT16, stacklevel=2)
        with torch.autocast(device, torch.float16):
            encoded = encoder(pixel_values)
        return {name: value.to(self.dtype) for name, value in self.features(encoded).items()}

    def features(self, encoded: ModelOutput) -> ImageFeatures:
        """What the decoder needs of the image encoder's output."""
        return {"image_embeddings": encoded.last_hidden_state}

    def decode(
        self,
        features: ImageFeatures,
        prompts: torch.FloatTensor,
        padding_points: int = 0,
        multimask_output: bool = False,
        empty_without_object: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mask logits `(num_prompts, height, width)` and the predicted IoU `(num_prompts,)` of embeddings `(num_prompts,
        prompt_dim)` that take the place of points and boxes; `features` of `encode` has one entry for each. Before
        each stand as many points that are none as `padding_points` says. With `multimask_output` masks are those of
        SAM's candidates whose predicted IoU is highest. With `empty_without_object` all logits of a mask are
        `NO_OBJECT` where the segmenter's object score is not above 0.
        """
        if not torch.compiler.is_exporting() and not self.segmenter.training and len(prompts) > DRAWN_AT_ONCE:
            parts = [
                self.decode(
                    {name: value[part] for name, value in features.items()},
                    prompts[part],
                    padding_points,
                    multimask_output,
                    empty_without_object,
                )
                for part in torch.arange(len(prompts)).split(DRAWN_AT_ONCE)
            ]
            return tuple(map(torch.cat, zip(*parts, strict=True)))
        _, dense = self.segmenter.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=None, input_masks=None
        )
        sparse = prompts[:, None]
        if padding_points:
            no_point = self.segmenter.prompt_encoder.not_a_point_embed.weight
            sparse = torch.cat([no_point.to(sparse).expand(len(sparse), padding_points, -1), sparse], 1)
        masks, iou_scores = self.decode_encoded(
            features, sparse[:, None], dense, multimask_output, empty_without_object
        )
        if not multimask_output:
            return masks[:, 0], iou_scores[:, 0]
        chosen = torch.arange(len(masks), device=masks.device), iou_scores.argmax(1)
        return masks[chosen], iou_scores[chosen]

    def draw(self, features: ImageFeatures, prompts: Sequence[SegmenterPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mask logits `(prompts, candidates, height, width)` and the predicted IoU `(prompts, candidates)` of prompts of
        one kind; `features` of `encode` has one entry for each. SAM-HQ returns its candidates sorted by their scores,
        the others from the smallest part to the whole.

        A box is two points, of labels 2 and 3, to the prompt encoder, which adds one that is none where SAM has it.
        """
        num_points, has_box, has_mask = prompts[0].kind
        like = {"device": self.segmenter.device, "dtype": self.dtype}
        points = labels = boxes = masks = None
        # Dimensions: image, prompt of the image, and for points their number.
        if num_points:
            points = torch.tensor([list(map(tuple, prompt.points)) for prompt in prompts], **like)[:, None]
            labels = torch.tensor([list(prompt.point_labels) for prompt in prompts], device=like["device"])[:, None]
        if has_box:
            boxes = torch.tensor([list(prompt.box) for prompt in prompts], **like)[:, None]
        if has_mask:
            masks = torch.stack([prompt.mask.to(**like) for prompt in prompts])[:, None]
        if not num_points and not has_box:
            points, labels = self.no_points(len(prompts))
        sparse, dense = self.segmenter.prompt_encoder(
            input_points=points, input_labels=labels, input_boxes=boxes, input_masks=masks
        )
        return self.decode_encoded(features, sparse, dense, multimask_output=True)

    def no_points(self, count: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Points `(count, 1, 1, 2)` and their labels that go beside nothing but a mask."""
        return None, None

    def decode_encoded(
        self,
        features: ImageFeatures,
        sparse: torch.Tensor | None,
        dense: torch.Tensor,
        multimask_output: bool,
        empty_without_object: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits `(prompts, candidates, height, width)` and scores `(prompts, candidates)` of encoded prompts."""
        positions = self.segmenter.get_image_wide_positional_embeddings()
        masks, iou_scores, *others = self.segmenter.mask_decoder(
            image_positional_embeddings=positions.expand(features["image_embeddings"].shape[0], -1, -1, -1),
            sparse_prompt_embeddings=sparse,  # image, prompt of the image, token, channel
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            **self.decoder_inputs(features),
        )
        if empty_without_object:
            _, object_scores = others
            masks = torch.where(object_scores[..., None, None] > 0, masks, NO_OBJECT)
        return masks[:, 0], iou_scores[:, 0]

    def decoder_inputs(self, features: ImageFeatures) -> dict:
        return features


class SamHqAdapter(SamAdapter):
    """SAM-HQ: also fuses the features of the first global-attention layer; masks of both outputs are added."""

    def features(self, encoded: ModelOutput) -> ImageFeatures:
        return {
            "image_embeddings": encoded.last_hidden_state,
            "intermediate_embeddings": encoded.intermediate_embeddings[0],
        }

    def decoder_inputs(self, features: ImageFeatures) -> dict:
        intermediate = [features["intermediate_embeddings"]]
        return {**features, "intermediate_embeddings": intermediate, "hq_token_only": False}


class Sam2Adapter(SamAdapter):
    """SAM 2 and the SAM 3 tracker: a feature pyramid, whose fine levels join while the mask is scaled up."""

    def features(self, encoded: ModelOutput) -> ImageFeatures:
        # The model's own get_image_embeddings computes the same without gradients.
        # SAM 3's pyramid has a fourth level, which its tracker has no use for.
        fine_0, fine_1, coarse = (level.to(self.dtype) for level in encoded.fpn_hidden_states[:3])
        decoder = self.segmenter.mask_decoder
        return {
            "image_embeddings": coarse + self.segmenter.no_memory_embedding[0, ..., None, None],
            "high_resolution_0": decoder.conv_s0(fine_0),
            "high_resolution_1": decoder.conv_s1(fine_1),
        }

    def no_points(self, count: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """One point that is none, as in the model's own forward."""
        device = self.segmenter.device
        points = torch.zeros(count, 1, 1, 2, dtype=self.dtype, device=device)
        return points, torch.full((count, 1, 1), -1, dtype=torch.int32, device=device)

    def decoder_inputs(self, features: ImageFeatures) -> dict:
        fine = [features[f"high_resolution_{level}"] for level in range(len(features) - 1)]
        return {"image_embeddings": features["image_embeddings"], "high_resolution_features": fine}


def with_encoder_in(dtype: torch.dtype, segmenter: PreTrainedModel) -> PreTrainedModel:
    """
    The segmenter in float32, but for matrices of its image encoder, which are brought to `dtype`: all of them to
    float16, those of its feed-forward blocks to bfloat16. Either way masks stay close to those of float32.
    """
    segmenter.float()
    for name, module in segmenter.vision_encoder.named_modules():
        if isinstance(module, _MATRICES) and (dtype != torch.bfloat16 or f".{_FEED_FORWARD}." in name):
            module.to(dtype)
        if dtype == torch.bfloat16 and name.endswith(f".{_FEED_FORWARD}"):
            module.register_forward_pre_hook(_as_weights_are)
    return segmenter


def with_heads_in_parts(segmenter: PreTrainedModel) -> PreTrainedModel:
    """
    The segmenter, whose image encoder attends globally with a few heads at a time where no gradients are wanted: what
    SAM adds to attention for relative positions is otherwise its largest tensor by far. Masks are the same.
    """
    needed = ("use_rel_pos", "num_attention_heads", "qkv", "proj")
    for module in segmenter.vision_encoder.modules():
        is_known = type(module).__name__.endswith("SdpaAttention") and all(hasattr(module, name) for name in needed)
        if is_known and module.use_rel_pos:
            module.__class__ = _in_parts(type(module))
    return segmenter


class _HeadsInParts:
    """Before an attention class of SAM, which then computes as it does, with some of its heads at a time."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        rows, height, width, _ = hidden_states.shape
        at_once = max(1, _POSITIONS_AT_ONCE // (rows * (height * width) ** 2))
        is_traced = torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()
        if at_once >= self.num_attention_heads or torch.is_grad_enabled() or is_traced:
            return super().forward(hidden_states, *args, **kwargs)
        heads = self.qkv(hidden_states).unflatten(-1, (3, self.num_attention_heads, -1)).split(at_once, dim=-2)
        attended = [self._with_heads(part, hidden_states, *args, **kwargs) for part in heads]
        return self.proj(torch.cat(attended, dim=-1)), None

    def _with_heads(self, heads: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What some heads make of their queries, keys and values `(rows, height, width, 3, heads, channels)`."""
        some = copy.copy(self)
        # beside the modules of these names, which an attribute of the object goes before
        taken = {"qkv": lambda _: heads.flatten(-3), "proj": nn.Identity(), "num_attention_heads": heads.shape[-2]}
        vars(some).update(taken)
        return super(_HeadsInParts, some).forward(*args, **kwargs)[0]

    def __reduce__(self) -> tuple:
        return _unmade, (type(self).__mro__[2],), vars(self).copy()


@cache
def _in_parts(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_HeadsInParts, kind), {})


def _unmade(kind: type[nn.Module]) -> nn.Module:
    """For copies and pickles, which know no class that is made while the program runs."""
    return _in_parts(kind).__new__(_in_parts(kind))


def _as_weights_are(block: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """What a block reads, in the type of its weights. What it returns is added to float32, and so becomes float32."""
    return tuple(value.to(next(block.parameters()).dtype) for value in inputs)


SEGMENTER_ADAPTERS = {"sam": SamAdapter, "sam_hq": SamHqAdapter, "sam2": Sam2Adapter, "sam3_tracker": Sam2Adapter}


def segmenter_adapter(segmenter: PreTrainedModel) -> SamAdapter:
    """The adapter of a segmenter's family."""
    family = segmenter.config.model_type
    if family not in SEGMENTER_ADAPTERS:
        raise ValueError(
            f"No adapter for a segmenter of type {family!r}; use one of {sorted(SEGMENTER_ADAPTERS)} or add an "
            "adapter with `encode` and `decoder_inputs` to SEGMENTER_ADAPTERS."
        )
    return SEGMENTER_ADAPTERS[family](segmenter)


def prepare_segmenter_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Fixes the settings under which one prompt gives one and the same mask in training and in evaluation."""
    # SAM's attention adds relative positions, which only these two implementations support.
    if config._attn_implementation not in (None, "eager", "sdpa"):
        config._attn_implementation = "sdpa"
    # In evaluation only, SAM 2 may return another mask than the one that was trained.
    if hasattr(config.mask_decoder_config, "dynamic_multimask_via_stability"):
        config.mask_decoder_config.dynamic_multimask_via_stability = False
    return config


def best_candidates(scores: torch.FloatTensor) -> torch.LongTensor:
    """
    The index `(prompts,)` of the largest of the scores `(prompts, candidates)`; of equal ones the last, as where they
    are sorted and read from the end (Seg-Zero, VisionReasoner, StAR).
    """
    return scores.shape[1] - 1 - scores.flip(1).argmax(dim=1)


# ---- masks at the size of their targets, and the losses of LISA and GSVA, as their training code computes them ------


def upsample_masks(
    low_res_masks: torch.FloatTensor, side: int, resized_size: tuple[int, int], output_size: tuple[int, int]
) -> torch.FloatTensor:
    """
    Brings mask logits `(masks, h, w)` to the `output_size` (height, width) of the image, as SAM does: bilinear to the
    segmenter's square view of `side` pixels (SAM: 1024), crop to the `resized_size` (height, width) of the image
    within it, bilinear to the image. In float32.
    """
    (height, width), output_size = map(int, resized_size), tuple(map(int, output_size))
    masks = F.interpolate(low_res_masks[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    return F.interpolate(masks[..., :height, :width], output_size, mode="bilinear", align_corners=False)[:, 0]


def check_targets(
    targets: torch.Tensor,
    row: int,
    image_size: tuple[int, int] | None,
    any_size: bool = False,
    highest: float = 1.0,
) -> torch.Tensor:
    """
    Checks the mask labels `(masks, height, width)` of a row: a loss of masks of 0 and 255, or of another image, is a
    number like any other.

    Raises:
        ValueError: If there is another number of dimensions, a value outside [0, `highest`], or a size that is neither
            the (height, width) `image_size` of the upright image, where it is known, nor a square, to which the whole
            image is squeezed. With `any_size` only a single row or column and swapped sides are refused.
    """
    if targets.ndim != 3 or 0 in targets.shape[1:]:
        raise ValueError(
            f"mask_labels of row {row} have the shape {tuple(targets.shape)}; give (masks, height, width), one mask "
            "per slot."
        )
    size = tuple(targets.shape[1:])
    known = image_size is not None and size[0] != size[1] and size != image_size
    if known and (not any_size or 1 in size or size == image_size[::-1]):
        raise ValueError(
            f"mask_labels of row {row} are {size} pixels (height, width), its upright image {image_size}; give them "
            "at the size of the image, or squeezed to a square."
        )
    # written so that NaN fails too
    if targets.dtype != torch.bool and not bool(((targets >= -ROUNDING) & (targets <= highest + ROUNDING)).all()):
        raise ValueError(
            f"mask_labels of row {row} have values from {targets.min().item():g} to {targets.max().item():g}; they "
            f"must lie in [0, {highest:g}]. Divide masks of 0 and 255 by 255."
        )
    return targets


def bce_per_mask(logits: torch.FloatTensor, targets: torch.FloatTensor) -> torch.FloatTensor:
    """Binary cross entropy of each mask `(masks,)`, the mean over its pixels; both are `(masks, height, width)`."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1)


def dice_per_mask(logits: torch.FloatTensor, targets: torch.FloatTensor) -> torch.FloatTensor:
    """
    Dice loss of each mask `(masks,)`, in [0, 1]: 1 - (2 |p t| / s + e) / (|p| / s + |t| / s + e) with s = 1000 and
    e = 1e-6; both are `(masks, height, width)`.
    """
    probabilities, targets = logits.sigmoid().flatten(1), targets.flatten(1)
    overlap = 2 * (probabilities / DICE_SCALE * targets).sum(-1)
    total = (probabilities / DICE_SCALE).sum(-1) + (targets / DICE_SCALE).sum(-1)
    return 1 - (overlap + SMOOTHING) / (total + SMOOTHING)


def sample_points(
    logits: torch.FloatTensor,
    count: int,
    oversampling: float = 3.0,
    uncertain_share: float = 0.75,
    extent: tuple[float, float] = (1.0, 1.0),
) -> torch.FloatTensor:
    """
    Points `(masks, count, 2)` (x, y), from 0 to `extent`, of mask logits `(masks, height, width)`, whose far corner is
    (1, 1): `uncertain_share` of them where a logit is closest to 0 among `oversampling` times as many drawn ones, the
    others anywhere (PointRend, section 3.1, as Mask2Former and Sa2VA train). A point may be drawn more than once.
    """
    num_uncertain, far = int(uncertain_share * count), torch.tensor(extent, device=logits.device)
    with torch.no_grad():
        drawn = torch.rand(len(logits), int(oversampling * count), 2, device=logits.device) * far
        certainty = values_at(logits.float(), drawn).abs()
        nearest = certainty.topk(num_uncertain, dim=1, largest=False).indices
        uncertain = drawn.take_along_dim(nearest[..., None], 1)
        anywhere = torch.rand(len(logits), count - num_uncertain, 2, device=logits.device) * far
        return torch.cat([uncertain, anywhere], 1)


def values_at(masks: torch.FloatTensor, points: torch.FloatTensor) -> torch.FloatTensor:
    """`masks` `(masks, height, width)` at `points` `(masks, count, 2)` (x, y) in [0, 1], bilinear."""
    # Only some trainings need it, and it may load scipy.
    from transformers.models.mask2former.modeling_mask2former import sample_point

    return sample_point(masks[:, None], points.to(masks), align_corners=False)[:, 0]


def naive_dice_per_mask(logits: torch.FloatTensor, targets: torch.FloatTensor) -> torch.FloatTensor:
    """Dice loss of each mask `(masks,)` at points `(masks, count)`: 1 - (2 |p t| + 1) / (|p| + |t| + 1)."""
    probabilities = logits.sigmoid()
    return 1 - (2 * (probabilities * targets).sum(1) + 1) / (probabilities.sum(1) + targets.sum(1) + 1)


def mean_over_masks(per_mask: list[torch.FloatTensor]) -> torch.FloatTensor:
    """Sum over all masks of the batch divided by their number plus 1e-8; 0 where there is none."""
    values = torch.cat(per_mask)
    return values.sum() / (len(values) + COUNT_EPS)
