"""One adapter per SAM family: encode an image once, draw any number of masks from prompt embeddings."""

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel


ImageFeatures = dict[str, torch.Tensor]


class SamAdapter:
    """
    SAM: the reference for the other families, which differ in what their encoder returns and their decoder takes.

    Args:
        segmenter (`PreTrainedModel`): A `SamModel`; it stays a stock module of the model that owns it.
    """

    def __init__(self, segmenter: PreTrainedModel):
        self.segmenter = segmenter

    def encode(self, pixel_values: torch.FloatTensor) -> ImageFeatures:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_images, 3, side, side)`): The segmenter's view.

        Returns:
            `dict[str, torch.Tensor]`: What the decoder needs, images along dimension 0 of every tensor.
        """
        return {"image_embeddings": self.segmenter.vision_encoder(pixel_values).last_hidden_state}

    def decode(self, features: ImageFeatures, prompts: torch.FloatTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            features (`dict[str, torch.Tensor]`): Output of `encode`, one entry per prompt along dimension 0.
            prompts (`torch.FloatTensor` of shape `(num_prompts, prompt_dim)`):
                One sparse prompt embedding each; it takes the place of points and boxes.

        Returns:
            Mask logits `(num_prompts, height, width)` and the predicted IoU `(num_prompts,)`.
        """
        _, dense_embeddings = self.segmenter.prompt_encoder(
            input_points=None, input_labels=None, input_boxes=None, input_masks=None
        )
        masks, iou_scores = self._decode(features, prompts[:, None, None], dense_embeddings, multimask_output=False)
        return masks[:, 0], iou_scores[:, 0]

    def draw(
        self,
        features: ImageFeatures,
        points: torch.FloatTensor | None = None,
        boxes: torch.FloatTensor | None = None,
        masks: torch.FloatTensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draws from the segmenter's own prompts; at least one kind is needed, and kinds may be combined.

        Args:
            features (`dict[str, torch.Tensor]`): Output of `encode`, one entry per prompt along dimension 0.
            points (`torch.FloatTensor` of shape `(num_prompts, 2)`, *optional*):
                One foreground point each, (x, y) in pixels of the segmenter's view.
            boxes (`torch.FloatTensor` of shape `(num_prompts, 4)`, *optional*): (x1, y1, x2, y2) there.
            masks (`torch.FloatTensor` of shape `(num_prompts, *mask_size)`, *optional*): Logits of soft masks.

        Returns:
            Mask logits `(num_prompts, candidates, height, width)` and the predicted IoU `(num_prompts, candidates)`.
            SAM-HQ returns its candidates sorted by that, the others from the smallest part to the whole.
        """
        sparse, dense = self._encode_prompts(points, boxes, masks)
        return self._decode(features, sparse, dense, multimask_output=True)

    def _encode_prompts(self, points, boxes, masks) -> tuple[torch.Tensor | None, torch.Tensor]:
        # Dimensions: image, prompt of the image, and for points their number.
        return self.segmenter.prompt_encoder(
            input_points=None if points is None else points[:, None, None],
            input_labels=None if points is None else torch.ones_like(points[:, None, :1], dtype=torch.long),
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=None if masks is None else masks[:, None],
        )

    def _decode(
        self, features: ImageFeatures, sparse: torch.Tensor | None, dense: torch.Tensor, multimask_output: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits `(prompts, candidates, height, width)` and scores `(prompts, candidates)`."""
        positions = self.segmenter.get_image_wide_positional_embeddings()
        masks, iou_scores, *_ = self.segmenter.mask_decoder(
            image_positional_embeddings=positions.expand(features["image_embeddings"].shape[0], -1, -1, -1),
            sparse_prompt_embeddings=sparse,  # image, prompt of the image, token, channel
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            **self.decoder_inputs(features),
        )
        return masks[:, 0], iou_scores[:, 0]

    def decoder_inputs(self, features: ImageFeatures) -> dict:
        return features

    @property
    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the low-resolution masks: four times the grid of image embeddings."""
        height, width = self.segmenter.prompt_encoder.image_embedding_size
        return 4 * height, 4 * width


class SamHqAdapter(SamAdapter):
    """SAM-HQ: also fuses the features of the first global-attention layer; masks of both outputs are added."""

    def encode(self, pixel_values: torch.FloatTensor) -> ImageFeatures:
        encoded = self.segmenter.vision_encoder(pixel_values)
        return {
            "image_embeddings": encoded.last_hidden_state,
            "intermediate_embeddings": encoded.intermediate_embeddings[0],
        }

    def decoder_inputs(self, features: ImageFeatures) -> dict:
        return {
            "image_embeddings": features["image_embeddings"],
            "intermediate_embeddings": [features["intermediate_embeddings"]],
            "hq_token_only": False,
        }


class Sam2Adapter(SamAdapter):
    """SAM 2 and the SAM 3 tracker: a feature pyramid, whose fine levels join while the mask is scaled up."""

    def encode(self, pixel_values: torch.FloatTensor) -> ImageFeatures:
        # The model's own get_image_embeddings computes the same without gradients.
        segmenter = self.segmenter
        *fine_levels, coarse_level = segmenter.get_image_features(pixel_values, return_dict=True).fpn_hidden_states
        levels = [*fine_levels, coarse_level + segmenter.no_memory_embedding]
        fine_maps = [
            level.permute(1, 2, 0).reshape(len(pixel_values), -1, *size)
            for level, size in zip(levels, segmenter.backbone_feature_sizes, strict=True)
        ]
        return {
            "image_embeddings": fine_maps[-1],
            **{f"high_resolution_{i}": level for i, level in enumerate(fine_maps[:-1])},
        }

    def _encode_prompts(self, points, boxes, masks) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = super()._encode_prompts(points, boxes, masks)
        if sparse is None:
            # A mask alone goes with one point that is none, as in the model's own forward.
            nowhere = torch.zeros(len(masks), 1, 1, 2, dtype=masks.dtype, device=masks.device)
            labels = torch.full((len(masks), 1, 1), -1, dtype=torch.int32, device=masks.device)
            sparse, _ = self.segmenter.prompt_encoder(
                input_points=nowhere, input_labels=labels, input_boxes=None, input_masks=None
            )
        return sparse, dense

    def decoder_inputs(self, features: ImageFeatures) -> dict:
        return {
            "image_embeddings": features["image_embeddings"],
            "high_resolution_features": [features[f"high_resolution_{level}"] for level in range(len(features) - 1)],
        }


SEGMENTER_ADAPTERS = {"sam": SamAdapter, "sam_hq": SamHqAdapter, "sam2": Sam2Adapter, "sam3_tracker": Sam2Adapter}


def segmenter_adapter(segmenter: PreTrainedModel) -> SamAdapter:
    """
    Returns:
        The adapter of the segmenter's family.

    Raises:
        ValueError: If the family has no adapter.
    """
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


def upsample_masks(
    low_res_masks: torch.FloatTensor,
    side: int,
    resized_size: tuple[int, int],
    output_size: tuple[int, int],
) -> torch.FloatTensor:
    """
    Brings low-resolution mask logits to the size of the picture, as SAM does: bilinear to the padded square, crop to
    the part that shows the picture, bilinear to the picture. In float32.

    Args:
        low_res_masks (`torch.FloatTensor` of shape `(masks, h, w)`): Mask logits.
        side (`int`): Side of the segmenter's square view in pixels (SAM: 1024).
        resized_size (`tuple[int, int]`): (height, width) of the picture within that view.
        output_size (`tuple[int, int]`): (height, width) of the picture.

    Returns:
        `torch.FloatTensor` of shape `(masks, height, width)`.
    """
    masks = low_res_masks[:, None].float()
    masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
    masks = masks[..., : int(resized_size[0]), : int(resized_size[1])]
    output_size = (int(output_size[0]), int(output_size[1]))
    return F.interpolate(masks, output_size, mode="bilinear", align_corners=False)[:, 0]


__all__ = ["segmenter_adapter", "upsample_masks"]
