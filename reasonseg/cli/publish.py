"""`reasonseg publish`: upload a verified repository to the Hub, as far as its licences allow."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .failures import CommandError, stderr_console
from .printing import printable_name, write_out


if TYPE_CHECKING:
    from ..conversion.publish import Change, PublishReport


_SIGNS = {"new": "+", "changed": "~", "unchanged": "=", "removed": "-", "only there": " "}


def publish(
    repo: Annotated[Path, typer.Argument(help="A converted or trained repository.", show_default=False)],
    repo_id: Annotated[str, typer.Option(help="Its name on the Hub: ORGANISATION/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Only you, or your organisation, can read it.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to publish on.  [default: main]")] = None,
    card: Annotated[
        str | None, typer.Option(help="Whose licences hold: a known checkpoint, or a values file.  [default: its own]")
    ] = None,
    trained_only: Annotated[
        bool, typer.Option("--trained-only", help="Publish what training changed, to be loaded on top of --base.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Base LLaVA with weights, folder or ORG/NAME[@REVISION], for --trained-only."),
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="The base's CLIP, folder or ORG/NAME, for --trained-only.")
    ] = None,
    sam: Annotated[str | None, typer.Option(help="SAM's own file or ORG/NAME/FILE, for --trained-only.")] = None,
    export: Annotated[Path | None, typer.Option(help="Folder to keep what --trained-only publishes in.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and compare, but upload nothing.")] = False,
    sign: Annotated[
        Path | None, typer.Option(help="Sign the manifest with this private key (PEM); needs model-signing.")
    ] = None,
    handler: Annotated[
        bool, typer.Option("--endpoint", help="Add handler.py and requirements.txt, which Inference Endpoints run.")
    ] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Make or renew a Space that runs it; private where it is.")
    ] = False,
    space_id: Annotated[str | None, typer.Option(help="Name of that Space.  [default: --repo-id]")] = None,
    endpoint: Annotated[
        str | None, typer.Option("--hub", help="Another Hub.  [default: HF_ENDPOINT, or the public one]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
):
    """Publish a repository on the Hub: verify it, show what differs there, upload that, and print the revision to use.

    Full weights made from LLaMA 1 may not be published: --private keeps them to you, --trained-only leaves out the
    base. The same command resumes an interrupted upload.
    """
    if trained_only and base is None:
        raise CommandError("--trained-only needs --base: the LLaVA folder the checkpoint was trained from.")
    if trained_only and sign is not None:
        raise CommandError("--sign signs the manifest of full weights, which --trained-only does not publish.")
    if trained_only and (handler or space):
        raise CommandError("--endpoint and --space run full weights, which --trained-only does not publish.")
    if space_id is not None and not space:
        raise CommandError("--space-id names the Space that --space makes. Pass --space, too, or leave it out.")
    if not trained_only and any((base, vision_tower, sam, export)):
        raise CommandError("--base, --vision-tower, --sam and --export belong to --trained-only. Pass it, or none.")

    from ..conversion.progress import rich_progress
    from ..conversion.publish import publish as publish_repository
    from ..conversion.publish import publish_trained
    from ..conversion.trained import Base

    console = stderr_console()
    options = {"private": private, "revision": revision, "card": card, "dry_run": dry_run, "endpoint": endpoint}
    if sign is not None:
        options["sign"] = sign
    if not trained_only:
        options |= {"handler": handler, "space": space_id or repo_id if space else None}
    options["on_changes"] = lambda changes: console.print(_as_table(changes), markup=False, soft_wrap=True)
    with rich_progress(console) as progress:
        if trained_only:
            own = {"base": Base(base, vision_tower, sam), "export": export}
            report = publish_trained(repo, repo_id, **own, **options, progress=progress)
        else:
            report = publish_repository(repo, repo_id, **options, progress=progress)
    if report.space is not None:
        seen = "private" if report.space.private else "as visible as the checkpoint"
        console.print(f"Space {report.space.repo_id}, {seen}:", markup=False)
        console.print(_as_table(report.space.changes), markup=False, soft_wrap=True)
    write_out(json.dumps(asdict(report), indent=2) + "\n" if as_json else _as_text(report, dry_run))


def _as_table(changes: "list[Change]") -> str:
    lines = [
        f"{_SIGNS[change.kind]} {printable_name(change.path)}  {_size(change.size)}  {change.kind}"
        for change in changes
        if change.kind != "unchanged"
    ]
    unchanged = sum(change.kind == "unchanged" for change in changes)
    return "\n".join([*lines, f"= {unchanged} files unchanged"])


def _as_text(report: "PublishReport", dry_run: bool) -> str:
    uploads = report.uploads
    amount = f"{len(uploads)} files, {_size(sum(change.size for change in uploads))}"
    if dry_run:
        return f"{report.repo_id}: nothing was uploaded (dry run); {amount} would be\n"
    done = f"{amount} uploaded" if uploads else "nothing to upload"
    space = "" if report.space is None else f"{report.space.url}\n"
    return f'{report.repo_id}: {done}\n{report.url}\n{space}revision="{report.revision}"\n'


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
