"""DiffLMM's view of a picture: padded to a square, with CLIP's statistics."""

from transformers.processing_utils import Unpack

from .image_processing_vip_llava import VipLlavaImageProcessor, VipLlavaImageProcessorKwargs


class DiffLmmImageProcessor(VipLlavaImageProcessor):
    r"""
    ViP-LLaVA's view in another size: a square in the colour of CLIP's mean, resized and normalised. Both towers of
    DiffLMM make their own view of it.

    Options are those of [`VipLlavaImageProcessor`].
    """

    size = {"shortest_edge": 384}
    crop_size = {"height": 384, "width": 384}

    def __init__(self, **kwargs: Unpack[VipLlavaImageProcessorKwargs]):
        super().__init__(**kwargs)


__all__ = ["DiffLmmImageProcessor"]
