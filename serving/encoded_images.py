"""Encoded images that a server keeps for further questions about them: by what they show, within bounds."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from ..modeling.composed_model import ImageCache


class EncodedImages:
    """
    The images that a model was asked about last. A client of a conversation sends them anew with each question.

    Args:
        model: Has `encode_image`.
        max_bytes (`int`): Of all that is kept, on the model's device; what was not asked about for longest goes first.
    """

    def __init__(self, model: Any, max_bytes: int):
        self.model, self.max_bytes = model, max_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[str, tuple[ImageCache, int]] = OrderedDict()

    def take(
        self, keys: Sequence[str], inputs: Mapping[str, Any], views_of: Callable[[list[int]], Mapping[str, Any]]
    ) -> ImageCache:
        """
        Args:
            keys (`list[str]`): One per image, equal for equal images.
            inputs (`Mapping`): What the processor made of all of them.
            views_of (`Callable[[list[int]], Mapping]`): What it makes of some of them; on the model's device.

        Returns:
            [`ImageCache`] of all images, in their order; those that are not kept are encoded now.
        """
        missing = [number for number, key in enumerate(keys) if key not in self._kept]
        if len(missing) == len(keys):
            return self.model.encode_image(**inputs)
        encoded = {number: self._kept[keys[number]][0] for number in range(len(keys)) if number not in missing}
        if missing:
            new = self.model.encode_image(**views_of(missing))
            encoded |= {number: one_image(new, place) for place, number in enumerate(missing)}
        return joined([encoded[number] for number in range(len(keys))])

    def keep(self, keys: Sequence[str], images: ImageCache) -> None:
        """Keeps what `take` returned, with what the segmenter has seen meanwhile."""
        for number, key in enumerate(keys):
            known, size = self._kept.pop(key, (None, 0))
            self.num_bytes -= size
            is_whole = known is not None and known.segmenter_features[0] is not None
            known = known if is_whole or self.max_bytes <= 0 else one_image(images, number)
            size = 0 if known is None else sum(tensor.nbytes for tensor in _tensors(known))
            if 0 < size <= self.max_bytes:
                self._kept[key] = known, size
                self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self._kept.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Keeps nothing any more."""
        self._kept.clear()
        self.num_bytes = 0


def one_image(images: ImageCache, number: int) -> ImageCache:
    """One of several images, which shares no memory with the others. What was read of prompts is left out."""
    views = torch.tensor([number])
    if images.tile_counts is not None:
        views = torch.arange(int(images.tile_counts.sum())).split(images.tile_counts.tolist())[number]
    features = images.vlm_features
    if features is not None:
        features = _with_entries(lambda entries: _picked(entries, views), features)
    per_image = {
        name: None if (value := getattr(images, name)) is None else value[number : number + 1].clone()
        for name in _PER_IMAGE
    }
    seen = images.segmenter_features[number]
    return ImageCache(
        vlm_features=features,
        vlm_inputs={name: _picked(value, views) for name, value in images.vlm_inputs.items()},
        num_images=1,
        segmenter_features=[None if seen is None else {name: value.clone() for name, value in seen.items()}],
        **per_image,
    )


def joined(images: Sequence[ImageCache]) -> ImageCache:
    """Several images, each encoded by itself, in one."""
    first, features = images[0], None
    if first.vlm_features is not None:
        features = _with_entries(lambda *entries: _in_a_row(entries), *(one.vlm_features for one in images))
    per_image = {
        name: None if getattr(first, name) is None else torch.cat([getattr(one, name) for one in images])
        for name in _PER_IMAGE
    }
    return ImageCache(
        vlm_features=features,
        vlm_inputs={name: _in_a_row([one.vlm_inputs[name] for one in images]) for name in first.vlm_inputs},
        num_images=len(images),
        segmenter_features=[one.segmenter_features[0] for one in images],
        **per_image,
    )


# Tensors of an `ImageCache` with a row per image. Its `grids` come with the inputs of every question.
_PER_IMAGE = ("sam_pixel_values", "original_sizes", "reshaped_input_sizes", "tile_counts")


def _with_entries(change: Callable[..., Any], *features: Any) -> Any:
    """Features as `get_image_features` returns them, whose entries, one per view, are changed; without what no
    language model reads."""
    changed = type(features[0])(pooler_output=change(*(one.pooler_output for one in features)))
    if getattr(features[0], "deepstack_features", None) is not None:
        layers = zip(*(one.deepstack_features for one in features), strict=True)
        changed.deepstack_features = [change(*entries) for entries in layers]
    return changed


def _picked(entries: Any, views: torch.LongTensor) -> Any:
    """Copies of some entries of a tensor or a list; other values as they are."""
    if isinstance(entries, torch.Tensor):
        return entries[views.to(entries.device)]
    if isinstance(entries, (list, tuple)):
        return [entries[view].clone() for view in views.tolist()]
    return entries


def _in_a_row(parts: Sequence[Any]) -> Any:
    """The entries of all parts."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], (list, tuple)):
        return [entry for part in parts for entry in part]
    return parts[0]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors within."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, ImageCache):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, (Mapping, list, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


__all__ = ["EncodedImages", "joined", "one_image"]
