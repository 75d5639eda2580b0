"""Parts of a command on machines that know nothing of each other, and what is merged of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.cli.failures import CommandError
from reasonseg.cli.result_lines import ResultLines
from reasonseg.cli.results import ResultFolder
from reasonseg.cli.shards import Shard, ended_shards, read_shard
from tests.support.written_results import REQUEST, write_results


COUNTS = st.integers(1, 9)


@given(st.integers(0, 40), COUNTS, COUNTS)
def test_shards_cut_where_batches_end(items, batch_size, count):
    items = list(range(items))
    parts = [Shard(index, count).of_batches(items, batch_size) for index in range(count)]
    assert [item for part in parts for item in part] == items
    assert all(len(part) % batch_size == 0 or part[-1] == items[-1] for part in parts)
    sizes = [-(-len(part) // batch_size) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(COUNTS, COUNTS, COUNTS, st.integers(0, 5), st.integers(0, 30))
def test_every_part_of_a_data_set_is_one_process_s(sources, shards, processes, source, part):
    source %= sources
    takers = [
        (shard, process)
        for shard in range(shards)
        for process in range(processes)
        if Shard(shard, shards).within(process, processes).takes(source, part, sources)
    ]
    assert len(takers) == 1


@given(COUNTS, COUNTS)
def test_sources_are_read_once_and_nobody_is_idle(sources, count):
    readers = [
        {index for index in range(count) for part in range(9) if Shard(index, count).takes(source, part, sources)}
        for source in range(sources)
    ]
    assert all(len(found) == 1 for found in readers) or count > sources
    assert len(set().union(*readers)) == min(count, max(sources, count))


def test_what_is_typed():
    assert read_shard(None) == Shard(0, 1)
    assert read_shard("3/64") == Shard(2, 64)
    for wrong in ("0/4", "5/4", "3", "3/0", "-1/4", "a/b", "1/100000"):
        with pytest.raises(CommandError, match="is not K/N with K from 1 to N"):
            read_shard(wrong)


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Names whose order as text differs from that of a folder's search, two of one stem, and one that is no image."""
    folder = tmp_path_factory.mktemp("in")
    for number, name in enumerate(("a/z.png", "a.png", "b.png", "c/b.png", "d.png", "e.png", "f.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "bad.png").write_text("no image")
    return folder


def run(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def segment(images: Path, out: Path, *more: object, code: int = 0):
    model = ("-p", "the red cup", "--reject-threshold", 0, "-m", "embedded", "--batch-size", 2, "--workers", 0)
    return run("segment", images, *model, "-o", out, *more, code=code)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert "bad.png" in segment(images, out, code=1).stderr
    return out


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory) -> list[Path]:
    """Five parts of four batches, so that one has nothing to do."""
    folder, codes = tmp_path_factory.mktemp("shards"), (0, 0, 1, 0, 0)
    folders = [folder / str(number) for number in range(1, 6)]
    for number, (out, code) in enumerate(zip(folders, codes, strict=True), start=1):
        segment(images, out, "--shard", f"{number}/5", code=code)
    return folders


@pytest.mark.slow
def test_merged_shards_are_what_one_run_writes(alone, shards, tmp_path):
    assert [len(ended_shards(folder)) for folder in shards] == [1] * 5
    result = run("merge", *reversed(shards), "--out", tmp_path / "merged")
    assert "7 images" in result.stdout
    assert content(tmp_path / "merged") == content(alone)
    before = (tmp_path / "merged" / "results.jsonl").stat().st_mtime_ns
    run("merge", *shards, "--out", tmp_path / "merged")
    assert (tmp_path / "merged" / "results.jsonl").stat().st_mtime_ns == before, "nothing is written again"
    (tmp_path / "merged" / "d_overlay.png").unlink()
    run("merge", *shards, "--out", tmp_path / "merged")
    assert content(tmp_path / "merged") == content(alone)


@pytest.mark.slow
def test_shards_in_one_folder_need_no_merging(images, alone, tmp_path):
    for number, code in ((3, 0), (1, 0), (2, 1)):
        assert segment(images, tmp_path / "out", "--shard", f"{number}/3", code=code)
    assert content(tmp_path / "out") == content(alone)


def test_one_shard_with_everything_says_that_it_has_ended(images, tmp_path):
    """As where there are fewer images than shards: the others are merged with it, and so it needs its mark."""
    first, second, both = (tmp_path / name for name in ("1", "2", "both"))
    write_results(second, [images / "a.png"], (40, 60))
    keys = list(ResultLines(second / "results.jsonl", "segment").records)
    for number, (folder, own) in enumerate(((first, []), (second, keys))):
        ResultFolder(folder, REQUEST).end_shard(Shard(number, 2), own, keys)
    assert [len(ended_shards(folder)) for folder in (first, second)] == [1, 1]
    assert "1 images" in run("merge", first, second, "--out", both).stdout
    ResultFolder(second, REQUEST).end_shard(Shard(0, 2), [], keys)
    assert not ended_shards(second), "all is in one folder"


def test_what_cannot_be_merged(shards, tmp_path):
    out = tmp_path / "out"

    def refused(*folders: Path, out: Path = out) -> str:
        return " ".join(run("merge", *folders, "--out", out, code=1).stderr.split())

    assert "2 of 5 shards are missing or have not ended: --shard 2/5, 4/5" in refused(*shards[::2])
    assert "named twice" in refused(*shards, shards[0])
    assert "one of the folders to merge" in refused(*shards, out=shards[0])
    assert "is not a folder" in refused(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no results" in refused(tmp_path / "empty")
    copy = Path(shutil.copytree(shards[1], tmp_path / "copy"))
    assert "A shard is there twice" in refused(*shards, copy)
    next(iter(ended_shards(copy))).unlink()
    assert "is none, or has not ended" in refused(shards[0], *shards[2:], copy)
    line = json.loads((copy / "results.jsonl").read_text(encoding="utf-8").splitlines()[0])
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    (other / "results.jsonl").write_text(json.dumps({**line, "text": "x"}) + "\n", encoding="utf-8")
    assert "differ in" in refused(copy, other)
    (other / "results.jsonl").write_text(json.dumps({**line, "image": "x.png"}) + "\n", encoding="utf-8")
    assert "cannot lie in one folder" in refused(copy, other)
    assert not out.exists()
    run("merge", copy, "--out", out)
    shutil.rmtree(other)
    shutil.copytree(shards[2], other)
    next(iter(ended_shards(other))).unlink()
    assert "already holds results of" in refused(other)


def test_no_split_is_merged_when_another_is_incomplete(tmp_path):
    source = tmp_path / "source"
    for split, is_last in (("a", True), ("b", False)):
        state = source / ".reasonseg" / split
        state.mkdir(parents=True)
        (state / "request.json").write_text('{"sources": 1}', encoding="utf-8")
        about = {"rows": 0, "failed": 0, "last": is_last}
        (state / "00000-of-00001-00000.json").write_text(json.dumps(about), encoding="utf-8")
    result = run("merge", source, "--out", tmp_path / "out", code=1)
    assert "The split 'b' is not complete" in result.stderr
    assert not (tmp_path / "out").exists()
    shutil.rmtree(source / ".reasonseg")
    (source / ".reasonseg").mkdir()
    assert "no part of a data set" in run("merge", source, "--out", tmp_path / "out", code=1).stderr
