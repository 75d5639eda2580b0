"""Where the labelled rows of a data set go: parquet files in a folder, or in a data-set repository on the Hub.

    data/train-00003-of-00008-00002.parquet     rows of the fourth of 8 sources, third part
    .reasonseg/train/request.json               what was asked, of which data set
    .reasonseg/train/00003-of-00008-00002.json  that the part is whole, and whether more follow: written after it
    README.md                                   what it is; see [`data_set_card`]

`datasets` finds the splits by these names.

A part is there, or not at all; it has the same bytes whoever wrote it, and when. Nobody writes into a part that others
write: so no process needs to know of another one.
"""

import filecmp
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from ..atomic_files import remove_drafts, write_whole, written_whole
from ..folder_lock import FolderInUseError, FolderLock
from .failures import CommandError, path_text


STATE = ".reasonseg"
_REQUEST, _README, _LOCK = "request.json", "README.md", ".lock"
# What the Hub answers when others have written at the same time, or it has too much to do.
_TRY_AGAIN = {409, 412, 429, 500, 502, 503, 504}
_TRIES = 5
_DOWNLOADS = 8


def open_shards(out: str, split: str | None, private: bool = False) -> "FolderShards":
    """Return where `--out` says that the parts of a split go; one that is not known yet is named by `of_split`.

    Raises:
        CommandError: it is neither a folder nor the address of a data-set repository.
    """
    from ..data.streamed_tables import HUB_PREFIX

    if out.startswith(HUB_PREFIX):
        return HubShards(out.removeprefix(HUB_PREFIX).rstrip("/"), split, private)
    if private:
        raise CommandError(f"--private is for a repository on the Hub: --out {HUB_PREFIX}ORG/NAME.")
    if "://" in out:
        raise CommandError(f"--out {out!r} is no folder. On the Hub it is {HUB_PREFIX}ORG/NAME.")
    if Path(out).exists() and not Path(out).is_dir():
        raise CommandError(f"--out {path_text(out)!r} is a file. Name a folder.")
    return FolderShards(Path(out), split)


def part_name(source: int, sources: int, part: int) -> str:
    """What a part of one of the sources is called; names sort as rows do."""
    return f"{source:05}-of-{sources:05}-{part:05}"


class FolderShards:
    """
    The parts of one split in a folder.

    Args:
        folder: made on the first write.
        split: its name; `None` where it is not known yet.
    """

    def __init__(self, folder: Path, split: str | None = None):
        self.folder, self.split, self.data = folder, split, folder / "data"

    def __str__(self) -> str:
        return path_text(self.folder)

    @property
    def state(self) -> Path:
        """Folder of what says how far the split is."""
        return self.folder / STATE / self.split

    def of_split(self, split: str) -> "FolderShards":
        """The same place, for the parts of this split."""
        other = copy(self)
        other.split = split
        return other

    def splits(self) -> list[str]:
        """The splits that were begun."""
        return sorted(path.parent.name for path in (self.folder / STATE).glob(f"*/{_REQUEST}"))

    def file_name(self, name: str) -> str:
        """Path of a part below the folder."""
        return f"data/{self.split}-{name}.parquet"

    def request(self) -> dict[str, Any] | None:
        """What the parts that are here were asked; `None` where there are none."""
        return self._json(_REQUEST)

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            return json.loads((self.state / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise CommandError(f"{path_text(self.state / name)!r} is damaged. Use another --out folder.") from None

    def begin(self, request: dict[str, Any], overwrite: bool = False) -> None:
        """Get ready for parts with this request, and clean up behind killed runs.

        Raises:
            CommandError: there are parts with another one, and `overwrite` is off.
        """
        with self._alone():
            for folder in (self.folder, self.data, self.state):
                remove_drafts(folder)
            for left in self.state.glob(f".*{_LOCK}"):  # of a part that was whole when its run was killed
                FolderLock(self.state, left.name).remove()
            earlier = self.request()
            if earlier is not None and earlier != request:
                self._refuse_or_empty(earlier, request, overwrite)
                earlier = None
            if earlier is None:
                write_whole(self.state / _REQUEST, _as_json(request))

    def _refuse_or_empty(self, earlier: dict[str, Any], request: dict[str, Any], overwrite: bool) -> None:
        if not overwrite:
            names = sorted(name for name in {*earlier, *request} if earlier.get(name) != request.get(name))
            changes = [f"{name} ({earlier.get(name)!r}, now {request.get(name)!r})" for name in names]
            raise CommandError(
                f"{str(self)!r} already holds results of the split {self.split!r} with another {', '.join(changes)}. "
                "Use another --out, or --overwrite to remove these results and begin again."
            )
        for name in self.done():
            (self.folder / self.file_name(name)).unlink(missing_ok=True)
        shutil.rmtree(self.state)

    def done(self) -> dict[str, dict[str, Any]]:
        """The parts that are whole: their `rows`, how many of these `failed`, and whether it is the `last`."""
        names = sorted(path.stem for path in self.state.glob("*-of-*.json"))
        return {name: found for name in names if (found := self.find(name)) is not None}

    def find(self, name: str) -> dict[str, Any] | None:
        """As `done`, of one part."""
        return self._json(f"{name}.json")

    @contextmanager
    def alone_with(self, name: str, patience: float = 0.0) -> Iterator[bool]:
        """Keep a part from other processes in a block; gives whether nobody else has it."""
        lock = FolderLock(self.state, f".{name}{_LOCK}")
        try:
            with lock.held(patience):
                yield True
        except FolderInUseError:
            yield False
            return
        finally:
            lock.remove()

    def save(self, name: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Have a part written, to the path that `write` is given; it returns what `done` is to say of it."""
        with written_whole(self.folder / self.file_name(name)) as draft:
            about = write(draft)
            if not about["rows"]:  # a source without rows
                draft.touch()
        if not about["rows"]:
            (self.folder / self.file_name(name)).unlink()
        write_whole(self.state / f"{name}.json", _as_json(about))
        return about

    def has_same(self, name: str, other: "FolderShards") -> bool:
        """Whether a part has the same bytes in another folder."""
        files = [shards.folder / shards.file_name(name) for shards in (self, other)]
        is_there = [file.is_file() for file in files]
        return filecmp.cmp(*files, shallow=False) if all(is_there) else not any(is_there)

    def copy(self, name: str, other: "FolderShards") -> None:
        """Take over a part from another folder."""
        about = other.find(name)

        def write(draft: Path) -> dict[str, Any]:
            if about["rows"]:
                shutil.copyfile(other.folder / other.file_name(name), draft)
            return about

        self.save(name, write)

    def finish(self) -> None:
        """Say in README.md what is here now."""
        with self._alone():
            card = data_set_card({split: FolderShards(self.folder, split) for split in self.splits()})
            readme = self.folder / _README
            if not readme.is_file() or readme.read_text(encoding="utf-8") != card:
                write_whole(readme, card)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the whole folder from other processes in a block."""
        lock = FolderLock(self.folder)
        try:
            with lock.held():
                yield
        finally:
            lock.remove()


class HubShards(FolderShards):
    """
    The parts of one split in a data-set repository on the Hub, as they are there when this is made. On this machine
    there is one part at a time.

    Args:
        repo_id: `organisation/name`; made on the first write.
        split: its name.
        private: whether only its owner sees it, where it is made.
    """

    def __init__(self, repo_id: str, split: str | None, private: bool = False):
        from huggingface_hub import HfApi
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        self.repo_id, self.private, self.api = repo_id, private, HfApi()
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise CommandError(f"--out {str(self)!r} names no repository: {error}") from None
        self._scratch = tempfile.TemporaryDirectory(prefix="reasonseg-")
        super().__init__(Path(self._scratch.name), split)
        self._is_there = False
        self._fetch()

    def __str__(self) -> str:
        from ..data.streamed_tables import HUB_PREFIX

        return f"{HUB_PREFIX}{self.repo_id}"

    def _fetch(self) -> None:
        """Bring what says how far the parts are; the parts themselves stay there."""
        from ..conversion.publish import on_the_hub

        def fetch(name: str) -> None:
            self.api.hf_hub_download(self.repo_id, name, repo_type="dataset", local_dir=self.folder)

        with on_the_hub(self, uploading=False), ThreadPoolExecutor(_DOWNLOADS) as threads:
            self._is_there = self.api.repo_exists(self.repo_id, repo_type="dataset")
            if self._is_there:
                names = self.api.list_repo_files(self.repo_id, repo_type="dataset")
                list(threads.map(fetch, (name for name in names if name.startswith(f"{STATE}/") or name == _README)))

    def begin(self, request: dict[str, Any], overwrite: bool = False) -> None:
        from ..conversion.publish import on_the_hub

        if overwrite:
            raise CommandError(f"--overwrite is for folders: what is in {str(self)!r} stays. Use another --out.")
        super().begin(request)
        if not self._is_there:
            with on_the_hub(self, uploading=False):
                self.api.create_repo(
                    self.repo_id, repo_type="dataset", private=True if self.private else None, exist_ok=True
                )
        elif self.private and not self.api.repo_info(self.repo_id, repo_type="dataset").private:
            raise CommandError(
                f"{str(self)!r} exists and is public. Make it private in its settings, or leave --private out."
            )
        self._upload(f"Label {self.split}", self.state / _REQUEST)

    def save(self, name: str, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        about = super().save(name, write)
        file = self.folder / self.file_name(name)
        self._upload(f"Add {self.file_name(name)}", *filter(Path.is_file, (file, self.state / f"{name}.json")))
        file.unlink(missing_ok=True)
        return about

    def finish(self) -> None:
        self._fetch()
        readme = self.folder / _README
        before = readme.read_bytes() if readme.is_file() else None
        super().finish()
        if readme.read_bytes() != before:
            self._upload("Say what is here", readme)

    def _upload(self, message: str, *files: Path) -> None:
        """Enter files in one commit."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HfHubHTTPError

        from ..conversion.publish import on_the_hub

        names = [file.relative_to(self.folder).as_posix() for file in files]
        with on_the_hub(self, uploading=True):
            for last in range(_TRIES):
                # An operation remembers what it has sent, so that every try needs its own.
                operations = [CommitOperationAdd(name, file) for name, file in zip(names, files, strict=True)]
                try:
                    self.api.create_commit(self.repo_id, operations, commit_message=message, repo_type="dataset")
                    return
                except HfHubHTTPError as error:
                    status = getattr(error.response, "status_code", None)
                    if status not in _TRY_AGAIN or last == _TRIES - 1:
                        raise
                    time.sleep(2.0**last)


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def data_set_card(splits: dict[str, FolderShards]) -> str:
    """Return the README.md of a folder or repository with these splits.

    It lists no files for `datasets`: where a folder's README does, `datasets` takes what it has kept of another folder
    of this name for it.
    """
    import yaml

    requests = {name: shards.request() for name, shards in splits.items()}
    sources = sorted({request["dataset"] for request in requests.values() if not request["dataset_is_folder"]})
    data = {
        "tags": ["reasonseg", "segmentation"],
        "task_categories": ["image-segmentation"],
    }
    if sources:
        data["source_datasets"] = sources
    lines = ["---", yaml.safe_dump(data, sort_keys=False).strip(), "---", "", "# Masks", ""]
    lines += [
        "Labelled with `reasonseg segment`: the columns of the original rows, and beside them `objects` (`label`, "
        "`rle`, `score`, `span`, `rejected`, ...), `answer`, `model`, `revision`, and `error` where a row could not "
        "be done. `rle` holds COCO's run lengths in the frame of the upright image: "
        '`pycocotools.mask.decode(row["objects"][0]["rle"])`.',
        "",
        "| split | of | model | asked | rows | failed | complete |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, shards in splits.items():
        request, done = requests[name], shards.done()
        asked = request["text"] or ", ".join(request["phrases"]) or request["text_column"] or request["phrases_column"]
        rows, failed = (sum(about[what] for about in done.values()) for what in ("rows", "failed"))
        cells = (
            name,
            request["dataset"],
            request["model"],
            asked,
            rows,
            failed,
            "yes" if is_whole(done, request) else "no",
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def whole_parts(folder: Path) -> list[tuple[FolderShards, str, int]]:
    """The parts in a folder that are whole and have rows: those of its split, its name, and how many rows it has. None
    where no data set was labelled.

    Raises:
        CommandError: one was, and no part is whole yet.
    """
    splits = [FolderShards(folder, split) for split in FolderShards(folder).splits()]
    parts = [(of, name, about["rows"]) for of in splits for name, about in of.done().items() if about["rows"]]
    if splits and not parts:
        raise CommandError(f"{path_text(folder)!r} holds no whole part yet; run `reasonseg segment` again.")
    return parts


def is_whole(done: dict[str, dict[str, Any]], request: dict[str, Any]) -> bool:
    """Whether every part of every source is there."""
    return not missing_parts(done, request)


def missing_parts(done: dict[str, dict[str, Any]], request: dict[str, Any]) -> list[str]:
    """The first part of each source that is not there, of those that are not complete."""
    missing = []
    for source in range(request["sources"]):
        part = 0
        while (about := done.get(part_name(source, request["sources"], part))) is not None and not about["last"]:
            part += 1
        if about is None:
            missing.append(part_name(source, request["sources"], part))
    return missing


__all__ = [
    "STATE",
    "FolderShards",
    "HubShards",
    "data_set_card",
    "is_whole",
    "missing_parts",
    "open_shards",
    "part_name",
    "whole_parts",
]
