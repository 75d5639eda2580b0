"""`reasonseg ask`: talk with a vision-language model about an image and its regions, by visual prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..model_names import EMBEDDED_HELP
from .failures import CommandError, stderr_console
from .inputs import check_question
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
from .talking import MaxNewTokens, Seed, Talk, Temperature, TopP, generation_options, read_numbers


if TYPE_CHECKING:
    from ..processing.visual_prompts import VisualPrompt


def ask(
    image: Annotated[Path, typer.Argument(help="The image.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"Folder or Hub name of a converted checkpoint; {EMBEDDED_HELP}.")
    ],
    text: Annotated[
        str | None,
        typer.Argument(
            help="The question. `<bbox0>`, `<bbox1>` ... become the words for the visual prompts.", show_default=False
        ),
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option("--box", "-b", metavar="X1,Y1,X2,Y2", help="Point at this box, in pixels.")
    ] = None,
    polygon: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,X,Y,...", help="Point at this polygon; ';' between several of a thing."),
    ] = None,
    mask: Annotated[
        list[Path] | None, typer.Option(help="Point at what is not black in this image of the same size.")
    ] = None,
    rle: Annotated[list[Path] | None, typer.Option(help="Point at the COCO run lengths in this JSON file.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            "-s",
            help="rectangle, ellipse, triangle, point, scribble, arrow, mask or mask-contour; one for all, or one per "
            "region (boxes, polygons, masks, run lengths).  [default: rectangle]",
        ),
    ] = None,
    color: Annotated[
        list[str] | None,
        typer.Option(
            "--color",
            "-c",
            help="A name, or #rrggbb, which has no words; one for all or one per region.  [default: red, ...]",
        ),
    ] = None,
    alpha: Annotated[int, typer.Option(min=0, max=255, help="Opacity of the visual prompts.")] = 128,
    width: Annotated[
        int | None, typer.Option(min=1, help="Of lines, in pixels at the size in which the model sees the image.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The prompted image to write.")] = Path("prompted.png"),
    interactive: Annotated[
        bool,
        typer.Option("--interactive", "-i", help="Ask further questions; the default without TEXT."),
    ] = False,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a JSON line.")] = False,
):
    """Ask about IMAGE, with visual prompts as ViP-LLaVA knows them; the answer appears while it is written.

    Works with every model of transformers' image-text-to-text kind. The image with its visual prompts is written to
    --out. Between questions, /reset forgets what was said, /exit (or the end of the input) leaves, and /help says what
    else there is.
    """
    if not image.is_file():
        raise CommandError(f"There is no image {str(image)!r}.")
    if text is not None:
        check_question(text)
    regions = read_regions(box or [], polygon or [], mask or [], rle or [])
    prompts = make_prompts(regions, shape or [], color or [], alpha)

    from ..processing.image_loading import load_rgb_image
    from ..processing.visual_prompts import assign_colors, fill_placeholders

    # What cannot be drawn or worded is refused before anything is loaded.
    console, shown, prompts = stderr_console(), load_rgb_image(image), assign_colors(prompts)
    for prompt in prompts:
        prompt.region.check_size((shown.height, shown.width))
    fill_placeholders(text or "", prompts)
    with console.status(f"Loading {escape(model)} ..."):
        precision = precision_of(dtype, segmenter_dtype, quantization, compiled)
        network, processor = load_checkpoint(model, revision, precision, device, trust_remote_code, "ask")
        from ..serving.conversation import Conversation
    options = generation_options(network, max_new_tokens, temperature, top_p)
    talk = Talk(Conversation(network, processor, **options), None, out, as_json)
    talk.look_at(image, shown, prompts, width)
    talk.run(text, interactive or text is None, seed)


def read_regions(boxes: list[str], polygons: list[str], masks: list[Path], rles: list[Path]) -> list[dict[str, Any]]:
    """Turn options into arguments of `VisualPrompt`: boxes, then polygons, masks and run lengths.

    Raises:
        CommandError: an option is not a list of numbers, or a file cannot be read.
    """
    regions: list[dict[str, Any]] = [{"box_xyxy": read_numbers("--box", given, 4)} for given in boxes]
    for given in polygons:
        parts = [part for part in given.split(";") if part.strip()]
        regions.append({"polygons": [read_numbers("--polygon", part) for part in parts]})
    from ..data.data_files import read_json
    from ..processing.mask_reading import read_mask

    for path in masks:
        if not path.is_file():
            raise CommandError(f"There is no image --mask {str(path)!r}.")
        regions.append({"mask": read_mask(path, what="--mask")})
    for path in rles:
        try:
            regions.append({"rle": read_json(path)})
        except (OSError, ValueError) as error:
            raise CommandError(f"--rle {str(path)!r} holds no run lengths as JSON ({error}).") from None
    return regions


def make_prompts(
    regions: list[dict[str, Any]], shapes: list[str], colors: list[str], alpha: int
) -> list["VisualPrompt"]:
    """One visual prompt per region.

    Raises:
        CommandError: the shapes or colours are neither one nor as many as the regions.
    """
    from ..processing.visual_prompts import VisualPrompt

    given = {"--shape": shapes, "--color": colors}
    for name, values in given.items():
        if len(values) not in (0, 1, len(regions)) or (values and not regions):
            raise CommandError(
                f"{len(values)} {name} and {len(regions)} regions were given. Give one for all regions, or one for "
                "each; a region is a --box, --polygon, --mask or --rle."
            )
    shapes = shapes or ["rectangle"]
    shapes = shapes * len(regions) if len(shapes) == 1 else shapes
    colors = colors * len(regions) if len(colors) == 1 else colors or [None] * len(regions)
    return [
        VisualPrompt(shape, color=color, alpha=alpha, **region)
        for shape, color, region in zip(shapes, colors, regions, strict=True)
    ]
