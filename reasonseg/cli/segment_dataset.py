"""`reasonseg segment --dataset`: rows of a data set in, the same rows with masks out, part by part."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .batches import saved_in_order
from .failures import CommandError, describe, print_error, stderr_console
from .inputs import DataSetOptions
from .labelled_shards import FolderShards, is_whole, open_shards, part_name
from .printing import write_out
from .processes import Processes
from .progress import step_progress
from .shards import Shard


if TYPE_CHECKING:
    from ..data.labelled_rows import PartWriter
    from ..data.streamed_tables import DataSetName, StreamedTables, TableReader


def label_data_set(
    options: DataSetOptions,
    out: str,
    settings: dict[str, Any],
    make_segmenter: Callable[[], Any],
    shard: Shard,
    processes: Processes,
    batch_size: int,
    workers: int,
    overwrite: bool,
    private: bool,
    as_json: bool,
) -> None:
    """Label a data set, or a shard of it, as `reasonseg segment --dataset` says.

    Args:
        options: which rows, and what is asked.
        out: a folder, or the address of a repository on the Hub.
        settings: what decides the result of an image.
        make_segmenter: loads the model; called when there is something to do.
        shard: which of the parts.
        processes: who shares that shard.
        batch_size, workers: as of `save_all`.
        overwrite, private, as_json: the options of these names.

    Raises:
        CommandError: the output holds results of another request, or nothing can be done.
        Exit: some rows failed.
    """
    from ..data.streamed_tables import StreamedTables

    console = stderr_console(processes.is_first)
    shards = open_shards(out, options.split, private)
    revision = _kept_revision(options, shards)
    with console.status("Looking at the data set ..."):
        tables = StreamedTables(options.dataset, options.split, options.config, revision)
        _check_rows(tables, options)
    shards = shards.of_split(tables.split)
    request = make_request(options, tables, settings)
    processes.agree(lambda: shards.begin(request, overwrite))
    before = 0 if overwrite else sum(about["rows"] for about in shards.done().values())
    if before:
        console.print(f"{before} rows are done already.")
    whole = tables.rows if shard.count == 1 else None  # how many a shard has is not known before they are read

    def tell(name: str, about: dict[str, Any]) -> None:
        failed = f", {about['failed']} failed" if about["failed"] else ""
        line = json.dumps({"file": name, **about}) if as_json else f"{name}: {about['rows']} rows{failed}"
        write_out(line + "\n")

    with step_progress(console, processes.is_first) as report:

        def counted(more: int = 0) -> None:
            report("Segmenting", before + processes.count_done(more), whole)

        counted()
        mine = shard.within(processes.index, processes.count)
        Labelling(options, tables, shards, mine, request, make_segmenter, batch_size, workers, tell, counted).run(
            overwrite
        )
        processes.gather([], while_waiting=counted)
    if not processes.is_first:
        return
    shards.finish()
    done = shards.done()
    failed = sum(about["failed"] for about in done.values())
    if is_whole(done, request):
        console.print(f"All {sum(about['rows'] for about in done.values())} rows are in {shards}.", soft_wrap=True)
    if failed:
        print_error(
            f"{failed} rows failed; their column `error` says why. The others are in {shards}; --overwrite does all "
            "again."
        )
        raise typer.Exit(1)


def _kept_revision(options: DataSetOptions, shards: FolderShards) -> str | None:
    """The commit of the data set that an earlier run of the same has read, so that a change on the Hub in between does
    not matter; `None` where there is none, or, without a split, where several were labelled."""
    from ..data.streamed_tables import read_name

    found, splits = read_name(options.dataset), [shards.split] if shards.split else shards.splits()
    if len(splits) != 1 or found.is_folder or found.revision is not None:
        return None
    earlier = shards.of_split(splits[0]).request()
    return earlier["dataset_version"] if earlier is not None and earlier["dataset"] == found.name else None


def _check_rows(tables: "StreamedTables", options: DataSetOptions) -> None:
    """
    Raises:
        DataSetError: the first rows lack a column, or one holds what its use does not allow.
    """
    from ..data.labelled_rows import output_features
    from ..data.streamed_tables import DataSetError, check_columns, image_column

    first = next(tables.read(0), None)
    if first is None:
        if tables.sources == 1:
            raise DataSetError(f"The data set {options.dataset!r} has no rows.")
        return
    image = options.image_column or image_column(first)
    check_columns(first, image, options.text_column, options.phrases_column)
    output_features(first, options.drop_columns)


def make_request(options: DataSetOptions, tables: "StreamedTables", settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the content of all parts; `settings` is what decides it for an image."""
    return {
        **settings,
        "dataset": Path(tables.name).resolve().name if tables.is_folder else tables.name,
        "dataset_is_folder": tables.is_folder,
        "dataset_version": tables.version,
        "config": options.config,
        "split": tables.split,
        "image_column": options.image_column,
        "text_column": options.text_column,
        "phrases_column": options.phrases_column,
        "drop_columns": list(options.drop_columns),
        "rows_per_shard": options.rows_per_shard,
        "sources": tables.sources,
    }


@dataclass
class Row:
    """
    One row of a part.

    Args:
        where: how messages call it.
        stored: what the column of images holds.
        question: a text or a list of phrases, where each row has its own.
    """

    where: str
    stored: Any
    question: Any


class RowWork:
    """Segments rows, as `saved_in_order` runs it.

    Args:
        segmenter: the model, or a server.
        asks_each_row: whether each row has a question of its own.
        origin: the data set, of which alone files are read.
    """

    def __init__(self, segmenter: Any, asks_each_row: bool, origin: "DataSetName"):
        self.segmenter, self.asks_each_row, self.compute = segmenter, asks_each_row, segmenter.compute
        self.origin = origin

    def load(self, row: Row) -> tuple[Any, Any]:
        from ..data.streamed_tables import image_content

        if self.asks_each_row:
            _check_question(row.question, self.segmenter.by_phrases)
        return self.segmenter.load(image_content(row.stored, self.origin)), row.question

    def prepare(self, loaded: list[tuple[Any, Any]]) -> Any:
        images, questions = zip(*loaded, strict=True)
        return self.segmenter.prepare(list(images), list(questions) if self.asks_each_row else None)

    def draw(self, row: Row, loaded: Any, result: Any) -> dict[str, Any]:
        """Return the row's new columns."""
        from ..data.labelled_rows import result_columns

        return result_columns(result)

    def write(self, row: Row, drawn: dict[str, Any]) -> dict[str, Any]:
        """Rows are written many at a time, see [`PartWriter`]."""
        return drawn


def _check_question(question: Any, by_phrases: bool) -> None:
    if not by_phrases and (question is None or not question.strip()):
        raise ValueError("It has no question.")
    if by_phrases and (not question or any(phrase is None or not phrase.strip() for phrase in question)):
        raise ValueError("It has no phrases, or an empty one.")


@dataclass
class Labelling:
    """
    What the parts of one command have in common.

    Args:
        options: of the command.
        tables: the data set.
        shards: where the parts go.
        shard: which parts this process does.
        request: see [`make_request`].
        make_segmenter: loads the model; called when there is something to do.
        batch_size, workers: as of `save_all`.
        told: called with a part's file name and what is said of it.
        counted: called with the number of rows that were done meanwhile.
    """

    options: DataSetOptions
    tables: "StreamedTables"
    shards: FolderShards
    shard: Shard
    request: dict[str, Any]
    make_segmenter: Callable[[], Any]
    batch_size: int
    workers: int
    told: Callable[[str, dict[str, Any]], None]
    counted: Callable[[int], None]
    _work: RowWork | None = field(default=None, init=False)

    def run(self, overwrite: bool = False) -> None:
        """Do all parts that are this process's and not done; those that another process has at work come last."""
        self._done = {} if overwrite else self.shards.done()
        self._overwrite = overwrite
        busy: list[tuple[int, int]] = []
        for source in range(self.tables.sources):
            if any(self.shard.takes(source, part, self.tables.sources) for part in range(self.shard.count)):
                busy += self._do_source(source)
        for source, part in busy:
            self._do_part(source, part, self.tables.reader(source), patience=float("inf"))

    def _do_source(self, source: int) -> list[tuple[int, int]]:
        """Do the parts of a source; returns those that another process is at."""
        busy, reader, part, rows = [], None, 0, self.options.rows_per_shard
        while True:
            name = part_name(source, self.tables.sources, part)
            about = self._done.get(name)
            is_last = about is not None and about["last"]
            if about is None:
                # Only now: what is done need not be read.
                reader = reader or self.tables.reader(source)
                reader.skip_to(part * rows)
                if part and not reader.has_more:
                    break
                if self.shard.takes(source, part, self.tables.sources):
                    about = self._do_part(source, part, reader)
                    if about is None:
                        busy.append((source, part))
                    else:
                        is_last = about["last"]
                if not is_last:
                    reader.skip_to((part + 1) * rows)
                    is_last = not reader.has_more
            if is_last:
                break
            part += 1
        return busy

    def _do_part(self, source: int, part: int, reader: "TableReader", patience: float = 0.0) -> dict[str, Any] | None:
        """Do a part; `None` if another process is at it."""
        name = part_name(source, self.tables.sources, part)
        with self.shards.alone_with(name, patience) as is_alone:
            if not is_alone:
                return None
            about = None if self._overwrite else self.shards.find(name)
            if about is None:
                reader.skip_to(part * self.options.rows_per_shard)
                about = self.shards.save(name, lambda path: self._write(path, name, reader))
                self.told(self.shards.file_name(name), about)
            return about

    def _write(self, path: Path, name: str, reader: "TableReader") -> dict[str, Any]:
        """Write the next rows of the reader as a part."""
        from ..data.labelled_rows import PartWriter, error_columns

        file_name, failures = self.shards.file_name(name), []
        revision = self.work.segmenter.revision
        writer = PartWriter(path, self.request["model"], revision, self.options.drop_columns)
        with closing(writer):
            batches = _batches(self._rows(reader, writer, file_name), self.batch_size)
            saved = saved_in_order(self.work, batches, self.workers, self.batch_size + self.workers)
            with closing(saved):
                for (number, row), outcome in saved:
                    if isinstance(outcome, Exception):
                        failures.append(f"{row.where}: {describe(outcome)}")
                        print_error(failures[-1])
                        outcome = error_columns(describe(outcome))
                    writer.add(number, outcome)
                    self.counted(1)
        if len(failures) == writer.rows > 1:
            raise CommandError(f"All {writer.rows} rows of {file_name} failed, so that it is not written; see above.")
        return {"rows": writer.rows, "failed": writer.failed, "last": not reader.has_more}

    @property
    def work(self) -> RowWork:
        if self._work is None:
            asks_each_row = (self.options.text_column or self.options.phrases_column) is not None
            self._work = RowWork(self.make_segmenter(), asks_each_row, self.tables.origin)
        return self._work

    def _rows(self, reader: "TableReader", writer: "PartWriter", file_name: str) -> Iterator[tuple[int, Row]]:
        """Yield the rows of a part with their numbers, as they are needed; tables are read one ahead."""
        from ..data.reading_ahead import read_ahead
        from ..data.streamed_tables import image_column, with_contents

        options, number = self.options, 0
        tables = reader.take(options.rows_per_shard)
        filled = partial(with_contents, origin=self.tables.origin)
        for table in read_ahead(filled, tables, workers=min(1, self.workers)):
            image = options.image_column or image_column(table)
            writer.expect(table)
            columns = {
                name: table.column(name).to_pylist() if name is not None else [None] * table.num_rows
                for name in (image, options.text_column, options.phrases_column)
            }
            for index in range(table.num_rows):
                question = columns[options.text_column or options.phrases_column][index]
                if options.phrases_column is not None and isinstance(question, str):
                    question = [question]
                yield number, Row(f"{file_name}, row {number}", columns[image][index], question)
                number += 1


def _batches(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
