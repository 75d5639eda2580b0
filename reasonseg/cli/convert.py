"""`reasonseg convert`: an original checkpoint in, a repository that transformers loads out."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .failures import print_error, readable_failures, stderr_console
from .printing import printable_name, write_out


if TYPE_CHECKING:
    from ..conversion.assembly import ConversionReport


app = typer.Typer(
    help="Turn an original checkpoint into a safetensors repository with its own code.",
    no_args_is_help=True,
)


class Dtype(StrEnum):
    """Number formats to store weights in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Template(StrEnum):
    """The originals' prompt templates."""

    llava_v1 = "llava_v1"
    llava_llama_2 = "llava_llama_2"


class VipLlavaTemplate(StrEnum):
    """The prompt templates of ViP-LLaVA's language models."""

    llava_v1 = "llava_v1"
    llava_llama_3 = "llava_llama_3"
    llava_phi_3 = "llava_phi_3"


Source = Annotated[
    str,
    typer.Argument(
        help="Original weights: folder or file, or ORG/NAME[/FILE][@REVISION] on the Hub.", show_default=False
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist or be empty.")]
Sam = Annotated[
    str | None, typer.Option(help="SAM's own file, or ORG/NAME/FILE on the Hub, for a source without SAM's encoder.")
]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Store the language model so.  [default: as it is]")]
SegmenterDtype = Annotated[Dtype | None, typer.Option(help="Store the segmenter so.  [default: float32]")]
TemplateOption = Annotated[Template, typer.Option(help="Prompt template the checkpoint was trained with.")]
ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]
Card = Annotated[str | None, typer.Option(help="Name of the model card's values.  [default: the source's name]")]


@app.command()
@readable_failures
def lisa(
    source: Source,
    vision_tower: Annotated[
        str, typer.Option(help="CLIP model: folder, or name on the Hub (openai/clip-vit-large-patch14).")
    ],
    out: Out,
    base: Annotated[
        str | None, typer.Option(help="Base LLaVA, folder or ORG/NAME[@REVISION]: config, tokenizer, if not there.")
    ] = None,
    sam: Sam = None,
    lora_alpha: Annotated[float, typer.Option(help="LoRA alpha of an unmerged source.")] = 16.0,
    dtype: DtypeOption = None,
    segmenter_dtype: SegmenterDtype = None,
    template: TemplateOption = Template.llava_v1,
    max_shard_size: ShardSize = "5GB",
    card: Card = None,
):
    """Convert a LISA checkpoint: a published folder, or what zero_to_fp32.py wrote."""
    from ..conversion.convert_lisa import convert_lisa

    options = {"vision_tower": vision_tower, "base": base, "sam": sam, "lora_alpha": lora_alpha}
    options["segmenter_dtype"] = None if segmenter_dtype is None else segmenter_dtype.value
    _convert(convert_lisa, source, out, dtype, template, max_shard_size=max_shard_size, card=card, **options)


@app.command()
@readable_failures
def gsva(
    source: Source,
    base: Annotated[str, typer.Option(help="Base LLaVA, folder or ORG/NAME[@REVISION]: config and tokenizer.")],
    out: Out,
    vision_tower: Annotated[
        str | None, typer.Option(help="CLIP folder or ORG/NAME: config, and weights if not there.")
    ] = None,
    sam: Sam = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA alpha.  [default: 16 for the released ranks 8 and 64]")
    ] = None,
    dtype: DtypeOption = None,
    segmenter_dtype: SegmenterDtype = None,
    template: TemplateOption = Template.llava_v1,
    max_shard_size: ShardSize = "5GB",
    card: Card = None,
):
    """Convert a GSVA checkpoint: a released .bin, or what zero_to_fp32.py wrote."""
    from ..conversion.convert_gsva import convert_gsva

    options = {"base": base, "vision_tower": vision_tower, "sam": sam, "lora_alpha": lora_alpha}
    options["segmenter_dtype"] = None if segmenter_dtype is None else segmenter_dtype.value
    _convert(convert_gsva, source, out, dtype, template, max_shard_size=max_shard_size, card=card, **options)


@app.command()
@readable_failures
def ivm(
    source: Source,
    base: Annotated[
        str, typer.Option(help="LLaVA-1.5 of transformers: folder, or ORG/NAME[@REVISION] (llava-hf/llava-1.5-7b-hf).")
    ],
    out: Out,
    sam: Sam = None,
    lora_alpha: Annotated[
        float | None, typer.Option(help="LoRA alpha.  [default: 16 for the released rank 8]")
    ] = None,
    keep_lora: Annotated[
        bool, typer.Option("--keep-lora", help="Keep the LoRA as a PEFT adapter beside the weights; needs peft.")
    ] = False,
    dtype: DtypeOption = None,
    segmenter_dtype: SegmenterDtype = None,
    max_shard_size: ShardSize = "5GB",
    card: Card = None,
):
    """Convert an IVM checkpoint: IVM-V1.0.bin (trained parts), or a dump of the whole module."""
    from ..conversion.convert_ivm import convert_ivm

    options = {"base": base, "sam": sam, "lora_alpha": lora_alpha, "keep_lora": keep_lora}
    options["segmenter_dtype"] = None if segmenter_dtype is None else segmenter_dtype.value
    _convert(convert_ivm, source, out, dtype, max_shard_size=max_shard_size, card=card, **options)


@app.command("vip-llava")
@readable_failures
def vip_llava(
    source: Annotated[
        str, typer.Argument(help="Original checkpoint: folder, or ORG/NAME[@REVISION] on the Hub.", show_default=False)
    ],
    out: Out,
    vision_tower: Annotated[
        str | None,
        typer.Option(help="CLIP folder, or ORG/NAME (openai/clip-vit-large-patch14-336), if there is none inside."),
    ] = None,
    dtype: DtypeOption = None,
    template: Annotated[
        VipLlavaTemplate | None, typer.Option(help="Prompt template.  [default: the language model's]")
    ] = None,
    max_shard_size: ShardSize = "5GB",
    card: Card = None,
):
    """Convert a ViP-LLaVA checkpoint, on Vicuna, Llama 3 or Phi-3, to transformers' VipLlava."""
    from ..conversion.convert_vip_llava import convert_vip_llava

    options = {"vision_tower": vision_tower, "max_shard_size": max_shard_size, "card": card}
    _convert(convert_vip_llava, source, out, dtype, template, **options)


@app.command()
@readable_failures
def difflmm(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with adapter_model and non_lora_trainables, or ORG/NAME[@REVISION]", show_default=False
        ),
    ],
    base: Annotated[
        str,
        typer.Option(help="Language model with its weights: folder, or ORG/NAME[@REVISION] (lmsys/vicuna-7b-v1.5)."),
    ],
    diffusion: Annotated[
        str, typer.Option(help="Stable Diffusion 1.5 in diffusers' layout: folder, or ORG/NAME[@REVISION].")
    ],
    vision_tower: Annotated[
        str, typer.Option(help="CLIP model: folder, or name on the Hub (openai/clip-vit-large-patch14-336).")
    ],
    out: Out,
    dtype: Annotated[Dtype | None, typer.Option(help="Store all weights so.  [default: as the base is]")] = None,
    template: TemplateOption = Template.llava_v1,
    max_shard_size: ShardSize = "5GB",
    card: Card = None,
):
    """Merge a DiffLMM adapter with its language model, Stable Diffusion and CLIP. Needs diffusers."""
    from ..conversion.convert_difflmm import convert_difflmm

    options = {"base": base, "diffusion": diffusion, "vision_tower": vision_tower}
    _convert(convert_difflmm, source, out, dtype, template, max_shard_size=max_shard_size, card=card, **options)


@app.command("attend-and-segment")
@readable_failures
def attend_and_segment(
    source: Annotated[
        str,
        typer.Argument(
            metavar="VLM",
            help="Vision-language model: folder of transformers or of an original LLaVA-1.5, or ORG/NAME[@REVISION].",
            show_default=False,
        ),
    ],
    sam: Annotated[
        str, typer.Option(help="SAM's own file, or a SAM, SAM-HQ or SAM 2 of transformers; also on the Hub.")
    ],
    out: Out,
    vision_tower: Annotated[
        str | None, typer.Option(help="CLIP of an original LLaVA-1.5 (openai/clip-vit-large-patch14-336).")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="paper, mean, or numbers such as 3,17.  [default: paper for LLaVA, else mean]")
    ] = None,
    phrase_extractor: Annotated[
        str, typer.Option(help="auto, spacy, spacy:PIPELINE or rules: what finds noun phrases.")
    ] = "auto",
    dtype: DtypeOption = None,
    segmenter_dtype: SegmenterDtype = None,
    template: TemplateOption = Template.llava_v1,
    max_shard_size: ShardSize = "5GB",
    card: Card = None,
):
    """Put any vision-language model and any SAM into one repository that grounds every phrase it writes."""
    from ..conversion.convert_attend_and_segment import convert_attend_and_segment

    options = {"sam": sam, "vision_tower": vision_tower, "phrase_extractor": phrase_extractor}
    options["heads"] = _heads(heads)
    options["segmenter_dtype"] = None if segmenter_dtype is None else segmenter_dtype.value
    _convert(
        convert_attend_and_segment, source, out, dtype, template, max_shard_size=max_shard_size, card=card, **options
    )


def _heads(text: str | None) -> str | list[int] | None:
    """Read `--heads`: a name, or numbers between commas."""
    if text is None or not text.replace(",", "").replace("-", "").replace(" ", "").isdigit():
        return text
    return [int(number) for number in text.split(",")]


@app.command("to-original")
@readable_failures
def to_original(
    repo: Annotated[Path, typer.Argument(help="A repository that `reasonseg convert` made.", show_default=False)],
    out: Out,
    max_shard_size: ShardSize = "10GB",
):
    """Write a repository's tensors back under their original names, shapes and types.

    Adapters stay merged, and what was cast to a narrower type stays rounded; both are counted.
    """
    from ..conversion.progress import rich_progress
    from ..conversion.to_original import write_original

    with rich_progress(stderr_console()) as progress:
        report = write_original(repo, out, max_shard_size=max_shard_size, progress=progress)
    lines = [f"{printable_name(report.out)}: {report.tensors} tensors in the original layout"]
    if report.merged:
        lines.append(f"{len(report.merged)} weights contain their LoRA adapter: a merge cannot be undone")
    if report.rounded:
        lines.append(f"{len(report.rounded)} tensors were rounded by the conversion's dtype and stay so")
    if report.dropped:
        lines.append(f"{report.dropped} tensors of the original were left out by the conversion (recomputed)")
    lines += [f"{count} parameters not written: they came from {origin}" for origin, count in report.elsewhere.items()]
    write_out("\n".join(lines) + "\n")


def _convert(
    convert: Callable[..., "ConversionReport"],
    source: str,
    out: Path,
    dtype: Dtype | None,
    template: Template | VipLlavaTemplate | None = None,
    **options: Any,
) -> None:
    """Run a conversion and say on stdout what it made of which sources."""
    from ..conversion.progress import rich_progress

    if template is not None:
        options["template"] = template.value
    try:
        with rich_progress(stderr_console()) as progress:
            report = convert(
                source,
                out=out,
                dtype=None if dtype is None else dtype.value,
                progress=progress,
                **options,
            )
    except KeyboardInterrupt:
        print_error("Interrupted; nothing was left behind. The same command starts again.")
        raise typer.Exit(130) from None
    origins = ", ".join(f"{count} from {origin}" for origin, count in report.origins.items())
    dropped = f"; {len(report.dropped)} of the source left out" if report.dropped else ""
    write_out(f"{printable_name(report.out)}: {report.num_parameters:,} parameters (tensors: {origins}{dropped})\n")
