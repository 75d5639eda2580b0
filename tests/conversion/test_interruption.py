"""A conversion that is killed, interrupted or short of disk leaves no half repository, and the next one succeeds."""

import os
import shutil
import signal
import time
from collections import namedtuple

import pytest
import torch

from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.verify import verify_repository
from reasonseg.modeling.modeling_lisa import LisaForReasoningSegmentation
from tests.support import forked_runs
from tests.support.originals import LISA, weights


TOWER = LISA / "vision_tower"
KILLS = 20


def convert(out, **options):
    return convert_lisa(LISA / "checkpoint", vision_tower=TOWER, out=out, **options)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Without fork every attempt would import torch again.")
def test_a_killed_conversion_leaves_nothing_or_everything(tmp_path):
    start = time.perf_counter()
    convert(tmp_path / "first")
    duration = time.perf_counter() - start
    outcomes = []
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        folder.mkdir()
        out = folder / "repo"
        child = forked_runs.start(lambda out=out: convert(out))
        time.sleep(duration * kill / (KILLS - 1))
        os.kill(child, signal.SIGKILL)
        forked_runs.end(child)
        complete = out.exists()
        if complete:
            assert verify_repository(out).ok
        else:
            convert(out)
        outcomes.append(complete)
        assert [path.name for path in folder.iterdir()] == ["repo"], "a staging folder was left"
        assert (out / "manifest.json").read_bytes() == (tmp_path / "first" / "manifest.json").read_bytes()
    assert not all(outcomes), "every kill came too late to test anything"


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ConversionError, match=r"needs 0\.0 GB and .* has 0\.0 GB free"):
        convert(tmp_path / "deep" / "repo")
    assert list(tmp_path.iterdir()) == []


def test_each_part_has_its_own_type(tmp_path):
    convert(tmp_path / "repo", dtype="float16", segmenter_dtype="bfloat16")
    for name, value in weights(tmp_path / "repo").items():
        wanted = {"vlm": torch.float16, "segmenter": torch.bfloat16}.get(name.split(".")[0], torch.float32)
        assert value.dtype is wanted, name
    report = verify_repository(tmp_path / "repo", against={"checkpoint": LISA / "checkpoint", "vision tower": TOWER})
    assert report.ok, report.problems
    model = LisaForReasoningSegmentation.from_pretrained(tmp_path / "repo", dtype="auto")
    assert model.vlm.dtype is torch.float16
    with pytest.raises(ConversionError, match="segmenter_dtype is 'int8'"):
        convert(tmp_path / "other", segmenter_dtype="int8")


def test_progress_is_told_in_bytes(tmp_path):
    calls = []
    convert(tmp_path / "repo", progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls if call[0] == "Writing weights"]
    assert done == sorted(done)
    assert max(done) <= next(call[2] for call in calls if call[0] == "Writing weights")
    assert calls[-1][1] == calls[-1][2] == sum(value.nbytes for value in weights(tmp_path / "repo").values())
