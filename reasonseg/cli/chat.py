"""`reasonseg chat`: talk with any model about images; masks are drawn while the answer is written."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..model_names import EMBEDDED_HELP
from .failures import CommandError, stderr_console
from .running import (
    Compiled,
    Device,
    Dtype,
    KeptDtype,
    MaxImagePixels,
    Quantized,
    Revision,
    SegmenterDtype,
    TrustRemoteCode,
    load_checkpoint,
    precision_of,
)
from .talking import MaxNewTokens, Seed, Talk, Temperature, TopP, generation_options


def chat(
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"Folder or Hub name of a checkpoint of any kind; {EMBEDDED_HELP}.")
    ],
    image: Annotated[
        Path | None, typer.Argument(help="The image; without it, /image FILE names one.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the masks; those of an earlier chat are replaced.")
    ] = Path("chat"),
    mask_threshold: Annotated[float, typer.Option(help="Pixels with a larger mask logit belong to a mask.")] = 0.0,
    reject_threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Reject what is less probably there; by default the model decides."),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    seed: Seed = None,
    device: Device = "auto",
    dtype: KeptDtype = Dtype.auto,
    segmenter_dtype: SegmenterDtype = Dtype.auto,
    quantization: Quantized = None,
    compiled: Compiled = False,
    max_image_pixels: MaxImagePixels = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Talk about IMAGE, question after question; the answer appears while it is written, and with it the masks.

    Works with models of every system and any of transformers' image-text-to-text kind. On a terminal the phrases of an
    answer have the colours of their masks, which are written to --out. /help says what can be typed beside questions:
    another image, phrases to segment, a box to point at, undo, reset, save. Questions may also come from a pipe.
    """
    if image is not None and not image.is_file():
        raise CommandError(f"There is no image {str(image)!r}.")
    from ..processing.image_loading import load_rgb_image

    pixels = None if image is None else load_rgb_image(image)  # what cannot be read is refused before loading
    with stderr_console().status(f"Loading {escape(model)} ..."):
        precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
        network, processor = load_checkpoint(model, revision, precision, device, trust_remote_code, "chat")
        from ..serving.conversation import Conversation
    options = generation_options(network, max_new_tokens, temperature, top_p)
    thresholds = {"mask_threshold": mask_threshold, "reject_threshold": reject_threshold}
    talk = Talk(Conversation(network, processor, **thresholds, **options), out, out / "prompted.png")
    if image is not None:
        talk.look_at(image, pixels)
    talk.run(None, further=True, seed=seed)
