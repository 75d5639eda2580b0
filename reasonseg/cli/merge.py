"""`reasonseg merge`: what several machines have labelled, in one folder."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from .failures import CommandError, path_text, refuse_address, stderr_console
from .labelled_shards import STATE, FolderShards, missing_parts
from .printing import printable_name, write_out
from .progress import with_progress
from .result_lines import RESULTS_NAME, ResultLines, record_files, record_key
from .results import ResultFolder
from .shards import ended_shards


def merge(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="What `reasonseg segment --shard K/N` has written.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all of it.")],
):
    """Put results of several machines into one folder.

    Images and lines, or parquet files of a data set, are then those of a single run, byte for byte. Shards may be
    given in any order; if one is missing or has not ended, nothing is written. The same command resumes a merge that
    was stopped. Results of different folders of images are put one after the other.
    """
    refuse_address(out)
    for folder in folders:
        if not folder.is_dir():
            raise CommandError(f"{path_text(folder)!r} is not a folder.")
    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise CommandError("A folder is named twice.")
    if os.path.realpath(out) in {os.path.realpath(folder) for folder in folders}:
        raise CommandError(f"--out {path_text(out)!r} is one of the folders to merge. Name another one.")
    kinds = {_kind(folder) for folder in folders}
    if len(kinds) > 1:
        raise CommandError("Some of the folders hold a data set and others hold images. Merge either.")
    count = merge_data_sets(folders, out) if kinds == {STATE} else merge_images(folders, out)
    write_out(f"{printable_name(out)}: {count}\n")


def _kind(folder: Path) -> str:
    for name in (STATE, RESULTS_NAME):
        if (folder / name).exists():
            return name
    if ended_shards(folder):  # a shard without images
        return RESULTS_NAME
    raise CommandError(f"{path_text(folder)!r} holds no results: it has neither {RESULTS_NAME} nor {STATE}.")


def merge_images(folders: list[Path], out: Path) -> str:
    """Merge results of `segment` over images, or of `mask`; returns what was done, in words.

    Raises:
        CommandError: a shard is missing, or two folders hold different results of one name.
    """
    folders = in_order(folders)
    records: dict[str, dict[str, Any]] = {}
    owners: dict[str, tuple[Path, str]] = {}
    from_folder: dict[str, Path] = {}
    for folder in folders:
        for key, record in ResultLines(folder / RESULTS_NAME, "segment").records.items():
            if key in records:
                if records[key] != record:
                    raise CommandError(f"{path_text(from_folder[key])!r} and {path_text(folder)!r} differ in {key!r}.")
                continue
            for name in record_files(record):
                if name.lower() in owners:
                    other, other_key = owners[name.lower()]
                    raise CommandError(
                        f"{path_text(other / name)!r} is a result of {other_key!r} and {path_text(folder / name)!r} "
                        f"one of {key!r}: they cannot lie in one folder. Merge them into folders of their own."
                    )
                owners[name.lower()] = folder, key
            records[key], from_folder[key] = record, folder
    console = stderr_console()
    with ResultFolder(out, {}) as results:
        if foreign := [key for key in results.records if key not in records]:
            raise CommandError(f"--out {path_text(out)!r} already holds results of {foreign[0]!r}. Name a new folder.")
        results.tidy()
        for key, record in with_progress(iter(records.items()), len(records), console, "Merging"):
            if results.records.get(key) == record and all((out / name).is_file() for name in record_files(record)):
                continue
            for name in record_files(record):
                source = from_folder[key] / name
                if not source.is_file():
                    raise CommandError(f"{path_text(source)!r} is missing. Run its shard again.")
                results.save_file(name, lambda draft, source=source: shutil.copyfile(source, draft))
            results.add(record)
        results.arrange([record_key(record) for record in records.values()])
    return f"{len(records)} images"


def in_order(folders: list[Path]) -> list[Path]:
    """Return folders of shards in the order of these, others as they are.

    Raises:
        CommandError: a shard is missing or there twice, or there are shards of several commands.
    """
    shards = {folder: list(ended_shards(folder).values()) for folder in folders}
    named = [shard for found in shards.values() for shard in found]
    if not named:
        return folders
    counts = {shard.count for shard in named}
    without = [folder for folder, found in shards.items() if not found]
    if len(counts) > 1 or without:
        what = f"they are parts of {' and of '.join(map(str, sorted(counts)))}"
        if without:
            what = f"{path_text(without[0])!r} is none, or has not ended"
        raise CommandError(f"Only shards of one command can be merged, but {what}. Run what has not ended again.")
    (count,) = counts
    indices = [shard.index for shard in named]
    if missing := sorted(set(range(count)) - set(indices)):
        listed = ", ".join(f"{index + 1}/{count}" for index in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise CommandError(f"{len(missing)} of {count} shards are missing or have not ended: --shard {listed}.")
    if len(set(indices)) < len(indices):
        raise CommandError("A shard is there twice. Name the folders of one run.")
    return sorted(folders, key=lambda folder: min(shard.index for shard in shards[folder]))


def merge_data_sets(folders: list[Path], out: Path) -> str:
    """Merge results of `segment --dataset`; returns what was done, in words.

    Raises:
        CommandError: a part is missing, the requests differ, or two folders hold different results of one part.
    """
    console = stderr_console()
    splits = sorted({split for folder in folders for split in FolderShards(folder).splits()})
    if not splits:
        raise CommandError("The folders hold no part of a data set: no run of `segment --dataset` has begun in them.")
    found: dict[str, tuple[dict[str, Any], dict[str, FolderShards]]] = {}
    for split in splits:  # all are checked before anything is written
        sources = [FolderShards(folder, split) for folder in folders]
        sources = [shards for shards in sources if shards.request() is not None]
        request, *others = (shards.request() for shards in sources)
        for other, shards in zip(others, sources[1:], strict=True):
            if other != request:
                changed = sorted(name for name in {*request, *other} if request.get(name) != other.get(name))
                raise CommandError(f"{sources[0]!s} and {shards!s} were asked different things: {', '.join(changed)}.")
        parts: dict[str, FolderShards] = {}
        done: dict[str, dict[str, Any]] = {}
        for shards in sources:
            for name, about in shards.done().items():
                if name in done and (done[name] != about or not parts[name].has_same(name, shards)):
                    raise CommandError(f"{parts[name]!s} and {shards!s} differ in {shards.file_name(name)}.")
                done.setdefault(name, about)
                parts.setdefault(name, shards)
        if missing := missing_parts(done, request):
            first = sources[0].file_name(missing[0])
            raise CommandError(
                f"The split {split!r} is not complete: {first} is missing, and so are files of {len(missing)} of "
                f"{request['sources']} sources in all. Run the shards that have not ended again."
            )
        found[split] = request, parts
    rows = 0
    for split, (request, parts) in found.items():
        target = FolderShards(out, split)
        target.begin(request)
        for name, shards in with_progress(iter(sorted(parts.items())), len(parts), console, f"Merging {split}"):
            if target.find(name) is None:
                target.copy(name, shards)
            rows += target.find(name)["rows"]
    FolderShards(out, splits[0]).finish()
    return f"{rows} rows"


__all__ = ["in_order", "merge", "merge_data_sets", "merge_images"]
