"""A manifest for repositories that no conversion made: trained ones, and what `save_pretrained` has written."""

from __future__ import annotations

from pathlib import Path

from .errors import ConversionError
from .manifest import MANIFEST, write_saved_manifest
from .progress import ProgressCallback
from .sources import read_json
from .verify import VerifyReport, system_of, verify_repository


def adopt_repository(
    repo: str | Path, *, replace: bool = False, progress: ProgressCallback | None = None
) -> VerifyReport:
    """Write the manifest of a repository that has none, and keep it only where everything else is right.

    What a training run keeps beside its repository (`checkpoint-N`, optimizer states, unmerged adapters) stays out.

    Args:
        repo (`str` or `Path`): The folder, with model, code and processor.
        replace (`bool`, *optional*, defaults to `False`): Write a new one where there is one already, because the
            weights were trained further.
        progress (`ProgressCallback`, *optional*): Told about bytes read.

    Returns:
        `VerifyReport`: What `verify_repository` says of the repository with its new manifest.

    Raises:
        ConversionError: The folder is no repository, has a manifest, or something in it is wrong.
    """
    repo = Path(repo)
    if not repo.is_dir():
        raise ConversionError("There is no such folder.", path=repo, next_step="Pass a trained or saved model.")
    if not replace and (repo / MANIFEST).exists():
        raise ConversionError(
            "The repository has a manifest already.",
            path=repo / MANIFEST,
            next_step="Verify it as it is; if it was changed on purpose, remove the manifest first.",
        )
    config = read_json(repo / "config.json")
    try:
        write_saved_manifest(repo, system=system_of(config, repo), dtype=str(config.get("dtype") or "float32"))
        report = verify_repository(repo, progress=progress)
    except BaseException:
        (repo / MANIFEST).unlink(missing_ok=True)
        raise
    if not report.ok:
        (repo / MANIFEST).unlink()
        first, more = report.problems[0], len(report.problems) - 1
        raise ConversionError(
            f"{first.file}: {first.cause}" + (f" ({more} more problems)" if more else ""),
            path=repo,
            next_step="Mend it; then `reasonseg verify --write-manifest` writes the manifest.",
        )
    return report
