"""What a vision-language model takes: images that several rows share, and the key-value cache under its name."""

import copy
import inspect

import torch
from transformers import PreTrainedModel


# transformers 5.24 renamed the argument; a model takes one of them.
CACHE_NAMES = ("cache", "past_key_values")


def image_encoder_parameters(vlm: PreTrainedModel) -> set[str]:
    """Names of the inputs that the model's image encoder takes (`pixel_values`, `image_grid_thw`, ...)."""
    return set(inspect.signature(vlm.base_model.get_image_features).parameters) - {"kwargs"}


def accepts_encoded_images(vlm: PreTrainedModel) -> bool:
    """Whether the model's forward takes images that are encoded already."""
    return "mm_encoder_outputs" in inspect.signature(vlm.forward).parameters


def select_images(features, image_index: torch.LongTensor):
    """
    Args:
        features (`ModelOutput`): Output of `get_image_features`; `pooler_output` has one entry per image.
        image_index (`torch.LongTensor` of shape `(rows,)`): The image of each row.

    Returns:
        A copy whose `pooler_output` (and `deepstack_features`) have one entry per row.
    """
    selected = copy.copy(features)
    selected.pooler_output = _entries(features.pooler_output, image_index)
    deepstack = getattr(features, "deepstack_features", None)
    if deepstack is not None:
        selected.deepstack_features = [_entries(layer, image_index) for layer in deepstack]
    return selected


def _entries(values, image_index: torch.LongTensor):
    """One entry per row, of a tensor or a list with one per image."""
    if isinstance(values, torch.Tensor):
        return values[image_index]
    if len({entry.shape for entry in values}) == 1:  # then no index has to be known while a graph is traced
        return list(torch.stack(list(values))[image_index])
    return [values[image] for image in image_index.tolist()]


def with_cache_named_for(vlm: PreTrainedModel, kwargs: dict) -> dict:
    """
    Returns:
        `dict`: `kwargs` with the key-value cache, given under either of its names, under the one that `vlm` takes.

    Raises:
        ValueError: If two caches are given.
    """
    given = [kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None]
    others = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    if not given:
        return others
    if len(given) > 1:
        raise ValueError("`cache` and `past_key_values` are two names of one argument; give one of them.")
    accepted = inspect.signature(vlm.prepare_inputs_for_generation).parameters
    return {**others, **{name: given[0] for name in CACHE_NAMES if name in accepted}}


def resolve_image_index(
    image_index: torch.LongTensor | None, num_rows: int, num_images: int, device: torch.device
) -> torch.LongTensor:
    """
    Returns:
        `torch.LongTensor` of shape `(num_rows,)`: The image of each row; one image serves all rows, otherwise each row
        has its own.

    Raises:
        ValueError: If rows and images do not match or an index names no image.
    """
    if image_index is None:
        if num_images not in (1, num_rows):
            raise ValueError(
                f"{num_rows} rows of input_ids and {num_images} images: give one image per row, one image for all "
                "rows, or `image_index` with the image of each row."
            )
        own_image = torch.arange(num_rows, device=device)
        return own_image if num_images > 1 else torch.zeros_like(own_image)
    # An exported graph takes any index; what it holds is not known while it is traced.
    is_known = not torch.compiler.is_exporting()
    if len(image_index) != num_rows or (is_known and (image_index.min() < 0 or image_index.max() >= num_images)):
        raise ValueError(
            f"image_index {image_index.tolist()} must have one entry per row ({num_rows}), each naming an image "
            f"(0 to {num_images - 1})."
        )
    return image_index.to(device)


__all__ = [
    "CACHE_NAMES",
    "accepts_encoded_images",
    "image_encoder_parameters",
    "resolve_image_index",
    "select_images",
    "with_cache_named_for",
]
