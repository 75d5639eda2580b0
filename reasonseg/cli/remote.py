"""Commands that have a running server do the work of a model."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .failures import CommandError


if TYPE_CHECKING:
    from PIL import Image

    from ..serving.client import RemotePipeline


Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Have a running `reasonseg serve` do the work, as http://127.0.0.1:8000; --model is then a name of its.",
        show_default=False,
    ),
]
API_KEY_VARIABLE = "REASONSEG_API_KEY"
ApiKey = Annotated[
    str | None, typer.Option(help=f"Of the server, where it asks for one; better in {API_KEY_VARIABLE}.")
]


def key_or_variable(api_key: str | None) -> str | None:
    """The key that was given as an option, or else in the environment: typer 0.26 does not look there by itself.

    Raises:
        CommandError: no header can hold it.
    """
    key = os.environ.get(API_KEY_VARIABLE) if api_key is None else api_key
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise CommandError("The API key is empty or holds characters that no header may have. Use letters and digits.")
    return key


def connect(server: str, model: str | None, api_key: str | None, model_options: dict[str, Any]) -> "RemotePipeline":
    """The pipeline of a server.

    Args:
        server: its address.
        model: one of its models; the first by default.
        api_key: what it asks for, unless the environment has it.
        model_options: the values of options that say how a model is loaded, by their spelling; none may be given.

    Raises:
        CommandError: one is given, or the key is none.
        ServerError: no such server, or it has no such model.
    """
    if given := [name for name, value in model_options.items() if value not in (None, False, "auto")]:
        raise CommandError(
            f"{', '.join(given)} says how a model is loaded, but those of {server} are loaded already. Give it to "
            "`reasonseg serve`, or leave --server out."
        )
    from ..serving.client import RemotePipeline

    return RemotePipeline(server, model, key_or_variable(api_key))


class RemoteSegmenter:
    """Asks a server the same about any image."""

    revision = None  # the server knows it

    def __init__(self, pipeline: "RemotePipeline", settings: Any, by_phrases: bool = False):
        self.pipeline, self.settings, self.by_phrases = pipeline, settings, by_phrases or bool(settings.phrases)

    def load(self, image: Path | str | bytes) -> "Image.Image":
        from ..processing.image_loading import load_rgb_image

        return load_rgb_image(image)

    def prepare(self, images: list["Image.Image"], questions: list[Any] | None = None) -> list[Any]:
        """Return a batch as the server takes it: images, each with what is asked; see [`Segmenter`]."""
        settings = self.settings
        if questions is None:
            questions = [settings.phrases or settings.text] * len(images)
        return list(zip(images, questions, strict=True))

    def compute(self, batch: list[Any]) -> list[Any]:
        """Return one `SegmentationResult` per image."""
        with ThreadPoolExecutor(len(batch)) as threads:
            return list(threads.map(self._ask, *zip(*batch, strict=True)))

    def _ask(self, image: "Image.Image", question: str | list[str]) -> Any:
        settings = self.settings
        (result,) = self.pipeline.segment(
            [image],
            **{"text" if isinstance(question, str) else "phrases": question},
            max_new_tokens=settings.max_new_tokens,
            mask_threshold=settings.mask_threshold,
            reject_threshold=settings.reject_threshold,
        )
        return result
