"""The processor of any vision-language model, with the segmenter's view of the same images."""

import os
from copy import deepcopy
from functools import cache
from inspect import signature
from typing import Any, Self

from transformers import AutoImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.utils import PROCESSOR_NAME, is_torchvision_available

from .chat import NO_IMAGE
from .chat_processor import ChatInputs, ChatProcessor, TokenRows, answer_ranges, without_row_options
from .image_loading import load_rgb_image
from .image_processing_reasoning_segmentation import SegmenterImageProcessor


class _WithoutVideos(ProcessorMixin):
    video_processor = None  # transformers asks for it, also where there is nothing to give it
    # What transformers makes it of where torchvision is installed; stays in what is saved.
    video_settings: dict[str, Any] | None = None

    @classmethod
    def get_attributes(cls) -> list[str]:
        return [name for name in super().get_attributes() if name != "video_processor"]

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        # SmolVLM's takes it without a default.
        return super().from_args_and_dict([*args, None], processor_dict, **kwargs)

    def __call__(self, *args, **kwargs) -> BatchFeature:
        given = signature(super().__call__).bind(*args, **kwargs).arguments
        if given.get("videos") is not None:
            raise ValueError(
                f"This {type(self).__name__} takes images and text alone: it was loaded or saved without torchvision. "
                "Leave videos out, or install torchvision and load the vision-language model's own folder."
            )
        return super().__call__(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        return output if self.video_settings is None else {**output, "video_processor": self.video_settings}

    def __reduce__(self):
        # Pickles find a class by its name, and under this one's stands transformers' own.
        return _empty_without_videos, (type(self).__mro__[2],), self.__dict__


@cache
def without_videos(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """
    A processor's class for images and text alone, which needs no torchvision: transformers has the video processors of
    Qwen-VL, InternVL and others for torchvision only, and builds none of their processors without.

    Args:
        processor_class (`type[ProcessorMixin]`): Such as `Qwen3VLProcessor`.

    Returns:
        `type[ProcessorMixin]`: A subclass of the same name, so that what it saves names the class of transformers,
        with `video_settings` for its video processor. It raises a `ValueError` for videos. `processor_class` itself
        where that takes none, or not as its last part.
    """
    # Parts are given by their places, so only the last one can go.
    if processor_class.get_attributes()[-1:] != ["video_processor"]:
        return processor_class
    names = {"__module__": processor_class.__module__, "__qualname__": processor_class.__qualname__}
    return type(processor_class.__name__, (_WithoutVideos, processor_class), names)


def _empty_without_videos(processor_class: type[ProcessorMixin]) -> ProcessorMixin:
    made = without_videos(processor_class)
    return made.__new__(made)


class ComposedProcessor(ChatProcessor):
    r"""
    The processor of any vision-language model together with the segmenter's view of the same images.

    The vision-language model's own processor stays what it is: on disk it lies in its usual files, which
    `processor_config.json` completes, so that its own class still loads them.

    Args:
        vlm_processor (`ProcessorMixin`): Processor of the vision-language model (`LlavaProcessor`, ...).
        segmenter_image_processor ([`SegmenterImageProcessor`], *optional*): The segmenter's view; SAM's by default.
        chat_template (`str` or `dict`, *optional*): Instead of the vision-language model's own.
    """

    # What processor_config.json holds besides both processors: arguments of a subclass that are attributes, too.
    own_fields = ()

    def __init__(self, vlm_processor=None, segmenter_image_processor=None, chat_template=None):
        if not isinstance(vlm_processor, ProcessorMixin):
            raise TypeError(
                f"vlm_processor is a {type(vlm_processor).__name__}; give the processor of the vision-language model."
            )
        self.vlm_processor = vlm_processor
        self.segmenter_image_processor = segmenter_image_processor or SegmenterImageProcessor()
        super().__init__(chat_template=vlm_processor.chat_template if chat_template is None else chat_template)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """None in the sense of `ProcessorMixin`: `vlm_processor` saves and loads its own parts."""
        return []

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.vlm_processor.tokenizer

    @property
    def image_processor(self) -> Any:
        return self.vlm_processor.image_processor

    @property
    def image_token(self) -> str:
        return self.vlm_processor.image_token

    @property
    def image_token_id(self) -> int:
        return self.vlm_processor.image_token_id

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        return self.vlm_processor.chat_template

    @chat_template.setter
    def chat_template(self, value: str | dict[str, str] | None):
        self.vlm_processor.chat_template = value

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.vlm_processor.model_input_names, *self.segmenter_image_processor.model_input_names]
        return list(dict.fromkeys([*names, "tile_counts"] if self._sees_tiles else names))

    @property
    def max_image_pixels(self) -> int:
        """`int`: Largest height x width of an image; a larger one is refused before it is decoded."""
        return self.segmenter_image_processor.max_image_pixels

    @property
    def _segmenter_view(self) -> Any:
        return self.segmenter_image_processor

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.vlm_processor.replace_image_token(image_inputs, image_idx, **kwargs)

    def _call_with_ranges(self, has_answers: bool, kwargs: dict[str, Any], **given) -> ChatInputs:
        """The inputs of a call, with `answer_ranges` where answers are given, and `labels` only where asked for."""
        wants_labels = kwargs.pop("return_labels", False)
        if has_answers or wants_labels:
            kwargs["return_labels"] = True
        inputs = super().__call__(**given, **kwargs)
        if inputs.rows is None:
            return inputs
        if has_answers:
            inputs["answer_ranges"] = answer_ranges(inputs)
        if not wants_labels and "labels" in inputs:
            del inputs["labels"]
        return inputs

    def _encode(self, conversations, images, index, options):
        if images is None:
            return self._call_vlm_processor(conversations, None, options)
        limit = self._pixel_limit(options)
        images = [load_rgb_image(image, limit) for image in images]
        if index is not None and NO_IMAGE in index:
            tokens = self._encode_with_and_without(conversations, images, index, options)
            return tokens, self._encode_images(images, options)
        by_row = images if index is None else [images[image] for image in index]
        tokens, views = self._call_vlm_processor(conversations, by_row, options)
        if index is not None:
            # An image that several rows share goes into the model once, so its view is needed once.
            return tokens, self._encode_images(images, options)
        return tokens, {**views, **self._segmenter_inputs(images, options)}

    def _encode_with_and_without(
        self, conversations: list[str], images: list, index: list[int], options: dict[str, Any]
    ) -> TokenRows:
        """Rows of ids where some have no image: not every processor takes both kinds in one call."""
        rows: list[dict[str, list]] = [{} for _ in index]
        for has_image in (True, False):
            chosen = [row for row, image in enumerate(index) if (image != NO_IMAGE) == has_image]
            views = [images[index[row]] for row in chosen] if has_image else None
            tokens = (
                self._call_vlm_processor([conversations[row] for row in chosen], views, options)[0] if chosen else {}
            )
            for name, values in tokens.items():
                for row, value in zip(chosen, values, strict=True):
                    rows[row][name] = value
        names = {name: None for row in rows for name in row}
        return {name: [row.get(name, [0] * len(row["input_ids"])) for row in rows] for name in names}

    def _encode_images(self, images, options):
        limit = self._pixel_limit(options)
        images = [load_rgb_image(image, limit) for image in images]
        _, views = self._call_vlm_processor([self.image_token] * len(images), images, options)
        return {**views, **self._segmenter_inputs(images, options)}

    def _pixel_limit(self, options: dict[str, Any]) -> int:
        """Largest height x width of an image: what the call says, else what the segmenter's view is set to."""
        return options["images_kwargs"].get("max_image_pixels") or self.max_image_pixels

    def _segmenter_inputs(self, images: list, options: dict[str, Any]) -> dict[str, Any]:
        tensors, limit = options["text_kwargs"].get("return_tensors"), self._pixel_limit(options)
        return dict(self.segmenter_image_processor(images, return_tensors=tensors, max_image_pixels=limit))

    def _call_vlm_processor(
        self, conversations: list[str], images: list | None, options: dict[str, Any]
    ) -> tuple[TokenRows, dict[str, Any]]:
        """Rows of ids and the vision-language model's views; it sorts the arguments of the call itself."""
        own = ("return_labels", "apply_template", "max_image_pixels")
        given = without_row_options(options["given"])
        given = {name: value for name, value in given.items() if name not in own and value is not None}
        text_kwargs = without_row_options(given.pop("text_kwargs", None) or {})
        images_kwargs = dict(given.pop("images_kwargs", None) or {})
        images_kwargs.pop("max_image_pixels", None)  # images are read by now; transformers' own processors know none
        images_kwargs["return_tensors"] = options["text_kwargs"].get("return_tensors")
        views = {} if images is None else {"images": [[image] for image in images], "images_kwargs": images_kwargs}
        encoded = self.vlm_processor(
            text=list(conversations), text_kwargs={**text_kwargs, "padding": False}, **views, **given
        )
        input_ids = [list(row) for row in encoded["input_ids"]]
        per_token = {*self.tokenizer.model_input_names, "mm_token_type_ids", "offset_mapping"}
        tokens = {name: [list(row) for row in values] for name, values in encoded.items() if name in per_token}
        views = {name: values for name, values in encoded.items() if name not in per_token}
        if images is not None and self._sees_tiles:
            # How many there are of each image is not said, but in its prompt.
            tiles = [ids.count(self.image_token_id) // self.vlm_processor.image_seq_length for ids in input_ids]
            views |= BatchFeature({"tile_counts": tiles}, tensor_type=images_kwargs["return_tensors"])
        return {**tokens, "input_ids": input_ids}, views

    @property
    def _sees_tiles(self) -> bool:
        """Whether images may have several entries of `pixel_values`, one after the other, as InternVL's."""
        return hasattr(self.image_processor, "crop_to_patches") and hasattr(self.vlm_processor, "image_seq_length")

    # ---- files --------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The vision-language model's processor, completed by what this class adds."""
        output = self.vlm_processor.to_dict()
        # Its code, where it has some, and not the one of this class.
        if (auto_map := output.pop("auto_map", None)) is not None:
            output["vlm_processor"] = {"auto_map": auto_map}
        output["vlm_processor_class"] = output["processor_class"]
        output["processor_class"] = type(self).__name__
        output["segmenter_image_processor"] = self.segmenter_image_processor.to_dict()
        output |= {name: self._saved(name) for name in self.own_fields}
        if hasattr(self, "auto_map"):
            output["auto_map"] = self.auto_map
        return output

    def _saved(self, name: str) -> Any:
        """What `processor_config.json` holds for a field of `own_fields`."""
        return deepcopy(getattr(self, name))

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """As [`ProcessorMixin.save_pretrained`]; returns the path of `processor_config.json`."""
        # The code that the tokenizer was saved with lies in another folder, and its names would lead nowhere.
        self.tokenizer.init_kwargs.pop("auto_map", None)
        self.vlm_processor.save_pretrained(save_directory)
        if self._auto_class is not None:
            custom_object_save(self, save_directory, config=self)
        processor_file = os.path.join(save_directory, PROCESSOR_NAME)
        self.to_json_file(processor_file)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory))), **kwargs)
        return [processor_file]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        backend: str = "pil",
        **kwargs,
    ) -> Self:
        """
        As [`ProcessorMixin.from_pretrained`]; the fields of this class (`seg_token`, `wording`, ...) may be given
        again, everything else (`trust_remote_code`, ...) goes to the vision-language model's processor.

        Args:
            backend (`str`):
                Backend of the vision-language model's image processor, as [`AutoImageProcessor.from_pretrained`]
                takes it. `"pil"` gives the same pixels with and without torchvision; a model whose image processor
                needs torchvision uses that.

        Raises:
            ValueError: If the folder holds no processor of this class.
        """
        hub = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
        }
        saved, _ = cls.get_processor_dict(pretrained_model_name_or_path, **hub)
        class_name = saved.get("vlm_processor_class")
        # Not an Auto class, which would look for a processor of its own.
        vlm_class = processor_class_from_name(class_name) if class_name else None
        code = ((saved.get("vlm_processor") or {}).get("auto_map") or {}).get("AutoProcessor", "")
        if vlm_class is None and code.endswith(f".{class_name}") and "--" not in code:
            if not kwargs.get("trust_remote_code"):
                raise ValueError(
                    f"{pretrained_model_name_or_path}: its {class_name} is code of this repository ({code}). Pass "
                    "trust_remote_code=True to run it, or import reasonseg, which has the class."
                )
            vlm_class = get_class_from_dynamic_module(code, pretrained_model_name_or_path, **hub)
            vlm_class.register_for_auto_class()
        if not (isinstance(vlm_class, type) and issubclass(vlm_class, ProcessorMixin)):
            raise ValueError(
                f"{pretrained_model_name_or_path}: {PROCESSOR_NAME} names the vlm_processor_class {class_name!r}, but "
                f"it must be a processor of transformers or of this repository. Was this folder saved by another "
                f"class than {cls.__name__} ({saved.get('processor_class')})?"
            )
        if not is_torchvision_available() or "video_processor" not in saved:
            vlm_class = without_videos(vlm_class)
        own = {name: kwargs.pop(name, saved.get(name)) for name in cls.own_fields}
        vlm_processor = vlm_class.from_pretrained(pretrained_model_name_or_path, **hub, **kwargs)
        if isinstance(vlm_processor, _WithoutVideos):
            vlm_processor.video_settings = saved.get("video_processor")
        chosen = getattr(getattr(vlm_processor, "image_processor", None), "backend", backend)
        # Only here: given to the processor, `backend` would reach the tokenizer, which takes it for its own.
        if chosen != backend:
            vlm_processor.image_processor = AutoImageProcessor.from_pretrained(
                pretrained_model_name_or_path, backend=backend, **hub, **kwargs
            )
        return cls(vlm_processor, SegmenterImageProcessor.from_dict(saved["segmenter_image_processor"]), **own)


__all__ = ["ComposedProcessor", "without_videos"]
