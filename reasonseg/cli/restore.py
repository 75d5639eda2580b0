"""`reasonseg restore`: what training changed, and its base, become a full repository again."""

from pathlib import Path
from typing import Annotated

import typer

from .failures import stderr_console
from .printing import printable_name, write_out


def restore(
    trained: Annotated[
        Path, typer.Argument(help="What `reasonseg publish --trained-only` published.", show_default=False)
    ],
    base: Annotated[str, typer.Option(help="The base LLaVA with its weights: folder, or ORG/NAME[@REVISION].")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make; it must not exist or be empty.")],
    vision_tower: Annotated[str | None, typer.Option(help="Its CLIP: folder, or ORG/NAME.")] = None,
    sam: Annotated[str | None, typer.Option(help="SAM's own file, or ORG/NAME/FILE.")] = None,
):
    """Put trained tensors and their base together: the full repository, byte for byte."""
    from ..conversion.progress import rich_progress
    from ..conversion.trained import Base
    from ..conversion.trained import restore as restore_repository

    with rich_progress(stderr_console()) as progress:
        restored = restore_repository(trained, out, base=Base(base, vision_tower, sam), progress=progress)
    write_out(f"{printable_name(restored)}: restored; every tensor has the checksum it was exported with\n")
