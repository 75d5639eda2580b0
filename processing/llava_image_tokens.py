"""How LLaVA's processors put a picture into a prompt: one image token per patch of its CLIP tower."""

from collections.abc import Mapping
from typing import Any

from transformers.image_utils import get_image_size, to_numpy_array
from transformers.processing_utils import MultiModalData

from .chat_processor import without_row_options
from .token_rows import TokenRows


class LlavaImageTokens:
    """
    Mixed into a [`ChatProcessor`] with the attributes of transformers' `LlavaProcessor`: `image_processor`,
    `patch_size`, `vision_feature_select_strategy`, `num_additional_image_tokens`.
    """

    def _set_image_geometry(
        self,
        tokenizer: Any,
        image_token: str,
        patch_size: int,
        vision_feature_select_strategy: str,
        num_additional_image_tokens: int,
    ) -> None:
        """Set what says how many image tokens a picture has, and `image_token` and `image_token_id` from a tokenizer.

        Raises:
            ValueError: If the tokenizer does not know the token.
        """
        self.patch_size = patch_size
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.num_additional_image_tokens = num_additional_image_tokens
        self.image_token = getattr(tokenizer, "image_token", None) or image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.image_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"The tokenizer has no token {self.image_token!r}; add it or name another `image_token`.")

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The image token as often as the picture has features."""
        height, width = get_image_size(to_numpy_array(image_inputs["pixel_values"][image_idx]))
        return self.image_token * self._num_image_tokens(height, width)

    def _num_image_tokens(self, height: int, width: int) -> int:
        patches = (height // self.patch_size) * (width // self.patch_size)
        class_token = 1 if self.vision_feature_select_strategy == "default" else 0
        return patches + self.num_additional_image_tokens - class_token

    def _view_size(self, images_kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """(height, width) of what the model sees of a picture."""
        crop_size = images_kwargs.get("crop_size") or self.image_processor.crop_size
        if isinstance(crop_size, int):
            return crop_size, crop_size
        return crop_size["height"], crop_size["width"]

    def _get_num_multimodal_tokens(self, image_sizes: list[list[int]] | None = None, **kwargs) -> MultiModalData:
        """Number of image tokens for pictures of the given (height, width), without processing them."""
        if image_sizes is None:
            return MultiModalData()
        num_tokens = self._num_image_tokens(*self._view_size(self._merge_kwargs(**kwargs)["images_kwargs"]))
        return MultiModalData(
            num_image_tokens=[num_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def _encode(
        self,
        conversations: list[str],
        images: list | None,
        index: list[int] | None,
        options: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> tuple[TokenRows, dict[str, Any]]:
        views, replacements = {}, []
        if images is not None:
            images = self.image_processor.fetch_images(images)
            views, replacements = self._process_images(images, **options["images_kwargs"])
            if index is not None:
                replacements = [replacements[place] for place in index]
        texts, offsets = self.get_text_with_replacements(list(conversations), replacements)
        text_kwargs = without_row_options(options["text_kwargs"])
        for name in ("return_mm_token_type_ids", "return_text_replacement_offsets"):
            text_kwargs.pop(name, None)
        tokens = dict(self.tokenizer(texts, padding=False, **text_kwargs))
        if options["return_mm_token_type_ids"]:
            tokens["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        views = dict(views)
        if options["return_text_replacement_offsets"]:
            views["text_replacement_offsets"] = offsets
        return tokens, views

    def _encode_images(self, images: list, options: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return dict(self.image_processor(self.image_processor.fetch_images(images), **options["images_kwargs"]))


__all__ = ["LlavaImageTokens"]
