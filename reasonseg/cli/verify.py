"""`reasonseg verify`: is a converted repository whole, and is it what was converted?"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import CommandError, print_error, stderr_console
from .printing import printable_name, write_out


if TYPE_CHECKING:
    from ..conversion.verify import VerifyReport


_MAX_SHOWN = 20


def verify(
    repo: Annotated[Path, typer.Argument(help="A converted, trained or saved repository.", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(help="The original checkpoint, a path or on the Hub: compare every tensor that comes from it."),
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="The CLIP folder, or ORG/NAME[@REVISION], it was converted with.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base LLaVA folder, or ORG/NAME[@REVISION], it was converted with.")
    ] = None,
    sam: Annotated[str | None, typer.Option(help="The SAM file, or ORG/NAME/FILE, it was converted with.")] = None,
    diffusion: Annotated[
        str | None, typer.Option(help="The diffusion model's folder, or ORG/NAME[@REVISION], it was converted with.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The LoRA adapter, its file or folder, or ORG/NAME[@REVISION], merged into it.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="A public key (PEM) whose holder must have signed; needs model-signing.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(help="The signature.  [default: manifest.json.sig of the repository]")
    ] = None,
    write_manifest: Annotated[
        bool, typer.Option("--write-manifest", help="Write the manifest of a model you have trained or saved.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
):
    """Check a repository: sha256 of every file, tensors, values, code, that it loads, and the originals' bits.

    No code of the repository is run. The exit code is 0 only when nothing is wrong, and only then --write-manifest
    leaves a manifest behind.
    """
    given = {
        "checkpoint": against,
        "vision tower": vision_tower,
        "base": base,
        "SAM file": sam,
        "diffusion": diffusion,
        "adapter": adapter,
    }
    given = {role: path for role, path in given.items() if path is not None}
    if signature is not None and key is None:
        raise CommandError("--signature needs --key: the public key of who should have signed.")
    if write_manifest and (given or key is not None):
        raise CommandError(
            "--write-manifest compares with no source and no signature. Pass it alone, then verify as you like."
        )

    from ..conversion.progress import rich_progress
    from ..conversion.verify import add_manifest, verify_repository

    with rich_progress(stderr_console()) as progress:
        if write_manifest:
            report = add_manifest(repo, progress=progress)
        else:
            report = verify_repository(repo, against=given, key=key, signature=signature, progress=progress)
    write_out(_as_json(report) if as_json else _as_text(report))
    if not report.ok:
        files = len({problem.file for problem in report.problems})
        print_error(f"{repo}: {len(report.problems)} problems in {files} files. Convert or download it again.")
        raise typer.Exit(1)


def _as_json(report: "VerifyReport") -> str:
    values = asdict(report) | {"repo": str(report.repo), "ok": report.ok}
    return json.dumps(values, indent=2) + "\n"


def _as_text(report: "VerifyReport") -> str:
    from ..conversion.manifest import learned_nothing

    lines = [f"{printable_name(problem.file)}: {problem.cause}" for problem in report.problems[:_MAX_SHOWN]]
    if len(report.problems) > _MAX_SHOWN:
        lines.append(f"... and {len(report.problems) - _MAX_SHOWN} more problems")
    if report.ok:
        checked = f"{report.files} of {report.files} files and {report.tensors} tensors"
        lines.append(f"{printable_name(report.repo)}: {checked} are right")
    lines += filter(None, [learned_nothing(report.new)])
    if report.signed:
        lines.append("the manifest is signed by the key that was given")
    lines += [f"{count} tensors equal the source {how}" for how, count in sorted(report.compared.items())]
    lines += [
        f"{count} tensors not compared: their source ({source}) was not given"
        for source, count in sorted(report.not_compared.items())
    ]
    return "\n".join(lines) + "\n"
