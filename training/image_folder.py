"""`data.kind: image_folder`: your own conversations and masks, for models that draw by `[SEG]`."""

from typing import Any

from ..data.data_files import DataFileError
from ..data.label_requests import read_labelled_requests
from ..data.request_folder import METADATA_FILE, ImageFolderExamples, first_rejection
from .collator import SegmentationCollator
from .data_kinds import DataKind
from .recipe import Recipe, RecipeError


class ImageFolder(DataKind):
    """The folder of one split; see `reasonseg.data.request_folder` for its format. With `data.options` annotations in
    any other format, see [`read_labelled_requests`]."""

    def check(self, recipe: Recipe) -> None:
        if not recipe.data.path:
            raise RecipeError("data.path is missing: name the folder of one split (with its metadata.jsonl).")

    def dataset(self, recipe: Recipe) -> ImageFolderExamples:
        path, options = recipe.data.path, recipe.data.options
        return ImageFolderExamples(path, read_labelled_requests(path, **options) if options else None)

    def check_model(self, dataset: ImageFolderExamples, processor: Any, model: str) -> None:
        """
        Raises:
            DataFileError: If the model has no `[SEG]`, or no `[REJ]` and an answer has.
        """
        if not getattr(processor, "seg_token", None):
            raise DataFileError(
                f"{dataset.folder} holds answers with [SEG], and {model} does not draw by [SEG]. Train LISA, GSVA or "
                "another model with `seg_token_id` on it."
            )
        rejected = first_rejection(dataset.images)
        if rejected is not None and getattr(processor, "rej_token", None) is None:
            lines, name = dataset.folder / METADATA_FILE, rejected.source.name
            where = f"{lines}, line {rejected.line}" if lines.is_file() else f"{dataset.folder}, {name}"
            raise DataFileError(
                f"{where}: an answer holds [REJ], which {model} does not know. Train a model with [REJ], such as "
                "GSVA, or leave such requests out."
            )

    def collator(self, recipe: Recipe, processor: Any) -> SegmentationCollator:
        return SegmentationCollator(processor, recipe.mask_size)


__all__ = ["ImageFolder"]
