"""Data sets of the library `datasets` as they stream, from the Hub or from a folder, without a copy on the disk.

A folder may be one that `save_to_disk` wrote, or hold parquet files, images (`imagefolder`) or whatever else
`load_dataset` reads. Rows come as pyarrow's tables, so that a column that nobody looks at passes as it is stored.

A data set is read in *sources*, parts of it that can be read apart, such as files. Their number depends on the data
set alone, and so does which rows are in each.
"""

import gzip
import hashlib
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


HUB_PREFIX = "hf://datasets/"
# Rows of a table: what is read, computed and written at a time.
TABLE_ROWS = 100
# Of each column of a parquet file, what is read and kept at a time.
_BUFFER_BYTES = 1 << 20
# More files than this are read several at a time: data sets of one image per file have very many.
MOST_SOURCES = 256
# Rows of a source of a data set on the disk, which has no files that say it.
_ROWS_ON_DISK = 1000
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
# Ways into files of an archive, `zip://NAME::ADDRESS`. Others of fsspec lead out of it.
_INTO_ARCHIVES = re.compile(r"(zip|gzip|bz2|lz4|xz|zstd)://")
# What one file alone is to blame for; a network that fails ends a run, which then goes on from there.
_OF_ONE_FILE = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError),
    *(ValueError, LookupError, EOFError),
    *(zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error),
)


class DataSetError(ValueError):
    """A data set cannot be read as it was asked for. The message says what is allowed."""


@dataclass(frozen=True)
class DataSetName:
    """
    What a data set is called.

    Args:
        name (`str`): The folder, or `organisation/name` on the Hub.
        revision (`str`, *optional*): Of the Hub, where one was given.
        is_folder (`bool`): Which of the two it is.
    """

    name: str
    revision: str | None
    is_folder: bool

    def address(self, path: str) -> str:
        """
        The path or address of a file that a row names. Rows come from anybody, and so do the names in them.

        Args:
            path (`str`): Relative to the folder, or as `datasets` has it: absolute, or `hf://datasets/...`, and of a
                file in an archive `zip://NAME::` before that.

        Raises:
            ValueError: It is no file of the data set.
        """
        *archives, last = path.split("::")
        is_ours = all(map(_INTO_ARCHIVES.match, archives))
        if self.is_folder:
            is_ours, last = is_ours and "://" not in last, os.path.abspath(os.path.join(self.name, last))
            is_ours = is_ours and "\0" not in last and _is_below(last, self.name)
        else:
            begins = re.match(rf"{HUB_PREFIX}{re.escape(self.name)}(@[^/]+)?/", last)
            is_ours = is_ours and begins is not None and ".." not in last.split("/")
        if not is_ours:
            raise ValueError(f"The file {path!r} is none of the data set's own, and no other is read.")
        return "::".join([*archives, last])

    def content(self, path: str) -> bytes:
        """
        The bytes of a file that a row names.

        Raises:
            ValueError: It is no file of the data set, or cannot be read.
        """
        address = self.address(path)
        # a pipe would block
        if self.is_folder and not os.path.isfile(address.rsplit("::", maxsplit=1)[-1]):
            raise ValueError(f"The file {path!r} cannot be read.")
        try:
            with _opened(address) as file:
                return file.read()
        except _OF_ONE_FILE:
            raise ValueError(f"The file {path!r} cannot be read.") from None


def _opened(address: str) -> Any:
    """A context with the file of a path or an address."""
    import fsspec

    return open(address, "rb") if os.path.isabs(address) else fsspec.open(address, "rb")


def _is_below(file: str, folder: str) -> bool:
    """By the names, so that links in the folder are its own; of the folder also where it leads to, as `datasets` has
    it."""
    real = os.path.realpath(folder)
    ways = ((file, os.path.abspath(folder)), (file, real), (os.path.realpath(file), real))
    return any(Path(path).is_relative_to(above) for path, above in ways)


def read_name(given: str) -> DataSetName:
    """Tell a folder from a name on the Hub, which is `ORG/NAME`, `ORG/NAME@REVISION` or an address `hf://datasets/...`.

    Raises:
        DataSetError: It is neither.
    """
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        return DataSetName(path, None, True)
    name, _, revision = given.removeprefix(HUB_PREFIX).partition("@")
    if os.path.lexists(path):
        raise DataSetError(
            f"{given!r} is a file. Name the folder that it lies in, or ORG/NAME of a data set on the Hub."
        )
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise DataSetError(
            f"{given!r} is neither a folder that exists nor ORG/NAME[@REVISION] of a data set on the Hub."
        )
    return DataSetName(name, revision or None, False)


class StreamedTables:
    """
    A split of a data set.

    Args:
        given (`str`): A folder or a name on the Hub, see [`read_name`].
        split (`str`, *optional*): May be left out where there is only one.
        config (`str`, *optional*): Which of its configurations (subsets), where it has several.
        revision (`str`, *optional*): Of the Hub; by default that of the name, or the newest.

    Attributes:
        name (`str`): The folder or the name on the Hub.
        is_folder (`bool`): Which of the two it is.
        origin ([`DataSetName`]): Both, and what rows may name.
        split (`str`): Also where it was left out.
        version (`str`): The commit, or of a folder a hash over the names and sizes of its files.
        sources (`int`): How many parts can be read apart.
        rows (`int`, *optional*): In all; `None` where they are not known before they are read.

    Raises:
        DataSetError: There is no such data set, configuration or split.
        ImportError: `datasets` is not installed.
    """

    def __init__(self, given: str, split: str | None = None, config: str | None = None, revision: str | None = None):
        datasets = _library()
        found = read_name(given)
        self.name, self.is_folder, self.origin, self.rows = found.name, found.is_folder, found, None
        files: dict[str, list[str]] = {}
        if found.is_folder:
            self.version = _folder_version(Path(found.name))
            saved = [name for name in (_SAVED, _SAVED_SPLITS) if os.path.isfile(os.path.join(found.name, name))]
            if saved and config is not None:
                raise DataSetError(f"{given!r} was written by `save_to_disk` and has no configuration {config!r}.")
            if saved:
                loaded = datasets.load_from_disk(found.name)
            else:
                loaded, files = _load(datasets, given, found.name, name=config)
        else:
            self.version = _commit(found.name, revision or found.revision, given)
            loaded, files = _load(datasets, given, found.name, name=config, revision=self.version)
        self.split, loaded = _choose_split(loaded, split, given)
        if hasattr(loaded, "to_iterable_dataset"):  # its rows lie on the disk
            self.rows = len(loaded)
            loaded = loaded.with_format(None)
            loaded = loaded.to_iterable_dataset(min(MOST_SOURCES, -(-max(self.rows, 1) // _ROWS_ON_DISK)))
        elif loaded.info.splits and self.split in loaded.info.splits:
            self.rows = loaded.info.splits[self.split].num_examples or None
        self.sources = max(1, min(MOST_SOURCES, loaded.num_shards))
        self._stream, self._files = loaded.with_format("arrow"), files.get(self.split)

    def read(self, source: int) -> Iterator[Any]:
        """Yield the rows of a source as tables (`pyarrow.Table`) of 100 rows, fewer where a file ends.

        Their schema holds the features of `datasets`; media are as they are stored.
        """
        stream = self._stream
        if self._files is not None:
            # as `shard` below shares them
            each, more = divmod(len(self._files), self.sources)
            first = each * source + min(source, more)
            files = self._files[first : first + each + (source < more)]
            return (table for file in files for table in _parquet_tables(file, stream.features))
        if self.sources > 1:
            stream = stream.shard(num_shards=self.sources, index=source, contiguous=True)
        return iter(stream.iter(batch_size=TABLE_ROWS))

    def reader(self, source: int) -> "TableReader":
        """Read the rows of a source from the first one on."""
        return TableReader(self.read(source))


class TableReader:
    """
    Reads tables in portions of any number of rows.

    Args:
        tables (`Iterator`): Of `pyarrow.Table`.

    Attributes:
        position (`int`): Rows that were taken or skipped.
    """

    def __init__(self, tables: Iterator[Any]):
        self._tables, self._next, self.position = tables, None, 0

    @property
    def has_more(self) -> bool:
        """Whether a row is left; reads ahead to know it."""
        while self._next is None or not self._next.num_rows:
            self._next = next(self._tables, None)
            if self._next is None:
                return False
        return True

    def take(self, rows: int) -> Iterator[Any]:
        """Yield tables that hold as many rows together, or those that are left."""
        while rows and self.has_more:
            table = self._next.slice(0, rows)
            self._next = self._next.slice(table.num_rows)
            self.position, rows = self.position + table.num_rows, rows - table.num_rows
            yield table

    def skip_to(self, position: int) -> None:
        """Pass over rows until this one is the next."""
        for _ in self.take(position - self.position):
            pass


def with_contents(table: Any, origin: DataSetName) -> Any:
    """Return a table whose images hold their bytes, also where it had only the paths of files of the data set.

    What cannot be read keeps its path and has no bytes.
    """
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if not _is_image(field.type):
            continue
        stored = table.column(index).to_pylist()
        if all(image is None or image["bytes"] is not None for image in stored):
            continue
        filled = pa.array(map(partial(_with_bytes, origin=origin), stored), field.type)
        table = table.set_column(index, field, filled)
    return table


def image_content(stored: Any, origin: DataSetName) -> bytes:
    """Return the file that a column of images holds, or names, in one row.

    Raises:
        ValueError: It holds no image of the data set.
    """
    if isinstance(stored, Mapping):
        stored = stored.get("path") if stored.get("bytes") is None else stored["bytes"]
    if isinstance(stored, bytes):
        return stored
    if not stored:
        raise ValueError("It has no image.")
    if not isinstance(stored, str):
        raise ValueError(f"Its image is of type {type(stored).__name__}.")
    return origin.content(stored)


def check_columns(table: Any, image: str, text: str | None, phrases: str | None) -> None:
    """
    Raises:
        DataSetError: A column is missing, or holds what its use does not allow.
    """
    allowed = {
        image: ("images", lambda kind: _is_image(kind) or _is_bytes(kind) or _is_text(kind)),
        text: ("texts", _is_text),
        phrases: (
            "texts or lists of texts",
            lambda kind: _is_text(kind) or (_is_list(kind) and _is_text(kind.value_type)),
        ),
    }
    for column, (wanted, is_allowed) in allowed.items():
        if column is None:
            continue
        if column not in table.column_names:
            raise DataSetError(f"There is no column {column!r}; there are {', '.join(table.column_names)}.")
        kind = table.schema.field(column).type
        if not is_allowed(kind):
            raise DataSetError(f"The column {column!r} holds {kind}; it must hold {wanted}.")


def image_column(table: Any) -> str:
    """Return the only column of images.

    Raises:
        DataSetError: There is none, or several.
    """
    columns = [field.name for field in table.schema if _is_image(field.type)]
    if len(columns) != 1:
        which = f"several columns of images ({', '.join(columns)})" if columns else "no column of images"
        raise DataSetError(f"The data set has {which} among {', '.join(table.column_names)}. Say which to take.")
    return columns[0]


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _with_bytes(image: dict[str, Any] | None, origin: DataSetName) -> dict[str, Any] | None:
    if image is None or image["bytes"] is not None or not image["path"]:
        return image
    try:
        content = origin.content(image["path"])
    except ValueError:
        return image
    # As `datasets` does where it puts images into a file: folders of this machine say nothing elsewhere.
    return {"bytes": content, "path": os.path.basename(image["path"].split("::")[0])}


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Data sets need the package datasets. Install it: pip install datasets") from error
    return datasets


def _load(datasets: Any, given: str, path: str, **options: Any) -> tuple[Any, dict[str, list[str]]]:
    """The splits as they stream, and the files of each where these are parquet and nothing of them is left out."""
    try:
        builder = datasets.load_dataset_builder(path, **options)
        loaded = builder.as_streaming_dataset()
    except (ValueError, FileNotFoundError) as error:  # also of an unknown configuration
        raise DataSetError(f"The data set {given!r} cannot be read: {' '.join(str(error).split())}") from None
    chosen = [getattr(builder.config, name, "no parquet") for name in ("columns", "filters", "fragment_scan_options")]
    if any(value is not None for value in chosen):
        return loaded, {}
    files = {str(split): list(map(str, files)) for split, files in builder.config.data_files.items()}
    is_plain = all(file.endswith(".parquet") for each in files.values() for file in each)
    return loaded, files if is_plain else {}


def _parquet_tables(file: str, features: Any) -> Iterator[Any]:
    """The rows of a parquet file, some at a time: `datasets` holds a whole row group, of any size, more than once.

    Raises:
        DataSetError: It cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from datasets.table import table_cast

    with _opened(file) as opened:
        try:
            reader = parquet.ParquetFile(opened, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            for batch in reader.iter_batches(TABLE_ROWS, use_threads=False):
                yield table_cast(pa.Table.from_batches([batch]), features.arrow_schema)
        except (OSError, ValueError) as error:
            raise DataSetError(f"The file {file!r} cannot be read: {' '.join(str(error).split())}") from None


def _choose_split(loaded: Any, split: str | None, given: str) -> tuple[str, Any]:
    """The split's name and its rows."""
    if not isinstance(loaded, Mapping):  # of `save_to_disk`: one split, or a part of one
        own = str(loaded.split) if loaded.split is not None else None
        if None not in (split, own) and split != own:
            raise DataSetError(f"The data set {given!r} has no split {split!r}; it is the split {own!r}.")
        return split or own or "train", loaded
    splits = list(loaded)
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        said = "several splits" if split is None else f"no split {split!r}"
        raise DataSetError(f"The data set {given!r} has {said}; choose one of {', '.join(splits)}.")
    return split, loaded[split]


def _folder_version(folder: Path) -> str:
    files = (Path(above) / name for above, _, names in os.walk(folder) for name in names)
    listed = sorted((os.fsencode(file.relative_to(folder)), file.stat().st_size) for file in files if file.is_file())
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _commit(name: str, revision: str | None, given: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except GatedRepoError:
        reason = "is on the Hub, but you have to accept its terms there first (then `hf auth login`)"
    except RepositoryNotFoundError:
        reason = "is not a folder here, and the Hub has no such data set that you may read"
    except RevisionNotFoundError:
        reason = f"is on the Hub, but without the revision {revision!r}"
    except OSError as error:
        reason = f"is not a folder here, and the Hub cannot be reached ({' '.join(str(error).split())})"
    raise DataSetError(f"The data set {given!r} {reason}.")


__all__ = [
    "HUB_PREFIX",
    "MOST_SOURCES",
    "TABLE_ROWS",
    "DataSetError",
    "DataSetName",
    "StreamedTables",
    "TableReader",
    "check_columns",
    "image_column",
    "image_content",
    "read_name",
    "with_contents",
]
