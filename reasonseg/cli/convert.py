"""`reasonseg convert`: an original checkpoint in, a repository that transformers loads out."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .failures import readable_failures, stderr_console


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


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist yet.")]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Store weights in this format.  [default: as they are]")]
TemplateOption = Annotated[Template, typer.Option(help="Prompt template the checkpoint was trained with.")]
ShardSize = Annotated[str, typer.Option(help="Largest weight file.")]


@app.command()
@readable_failures
def lisa(
    source: Annotated[Path, typer.Argument(help="Folder of a merged checkpoint, or of zero_to_fp32's output.")],
    vision_tower: Annotated[Path, typer.Option(help="Folder of the CLIP model (openai/clip-vit-large-patch14).")],
    out: Out,
    base: Annotated[
        Path | None, typer.Option(help="Base LLaVA folder, for a source without config or tokenizer.")
    ] = None,
    lora_alpha: Annotated[float, typer.Option(help="LoRA alpha of an unmerged source.")] = 16.0,
    dtype: DtypeOption = None,
    template: TemplateOption = Template.llava_v1,
    max_shard_size: ShardSize = "5GB",
):
    """Convert a LISA checkpoint."""
    from ..conversion.convert_lisa import convert_lisa

    _convert(
        convert_lisa,
        source,
        vision_tower=vision_tower,
        out=out,
        base=base,
        lora_alpha=lora_alpha,
        dtype=dtype,
        template=template,
        max_shard_size=max_shard_size,
    )


@app.command()
@readable_failures
def gsva(
    source: Annotated[Path, typer.Argument(help="The released .bin file.")],
    base: Annotated[Path, typer.Option(help="Base LLaVA folder, for config and tokenizer.")],
    lora_alpha: Annotated[float, typer.Option(help="LoRA alpha; 16 in the released scripts.")],
    out: Out,
    vision_tower: Annotated[Path | None, typer.Option(help="CLIP folder, for its config and missing weights.")] = None,
    sam: Annotated[Path | None, typer.Option(help="SAM ViT-H file, for a .bin without SAM.")] = None,
    dtype: DtypeOption = None,
    template: TemplateOption = Template.llava_v1,
    max_shard_size: ShardSize = "5GB",
):
    """Convert a GSVA checkpoint."""
    from ..conversion.convert_gsva import convert_gsva

    _convert(
        convert_gsva,
        source,
        base=base,
        vision_tower=vision_tower,
        sam=sam,
        lora_alpha=lora_alpha,
        out=out,
        dtype=dtype,
        template=template,
        max_shard_size=max_shard_size,
    )


def _convert(convert: Callable, source: Path, *, out: Path, **options: Any) -> None:
    """Run a conversion and name the folder it made on stdout."""
    options = {name: value.value if isinstance(value, StrEnum) else value for name, value in options.items()}
    with stderr_console().status(f"Converting {source} ..."):
        convert(source, out=out, **options)
    sys.stdout.write(f"{out}\n")
