"""Tensors are written one at a time into files that safetensors reads."""

import hashlib
import json
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from reasonseg.conversion import shards
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.plan import PlannedTensor
from reasonseg.conversion.progress import no_progress, rich_progress
from reasonseg.conversion.shards import write_shards


VALUES = {
    "b.half": torch.randn(3, 5).bfloat16(),
    "a.odd": torch.randn(7).half(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "c.view": torch.randn(6, 4).T,
    "d.double": torch.randn(2, dtype=torch.float64),
}


def plan(values=VALUES):
    return [
        PlannedTensor(name, tuple(value.shape), value.dtype, "test", lambda value=value: value.contiguous())
        for name, value in values.items()
    ]


def test_one_file(tmp_path):
    calls = []
    digests = write_shards(tmp_path, plan(), "1GB", lambda *call: calls.append(call), lambda: None)
    files = list(digests)
    assert digests[files[0]] == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert [file.name for file in files] == ["model.safetensors"]
    loaded = load_file(files[0])
    assert set(loaded) == set(VALUES)
    for name, value in VALUES.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)
    with safe_open(files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    total = sum(value.nbytes for value in VALUES.values())
    assert calls[-1] == ("Writing weights", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_shards_and_index(tmp_path):
    released = []
    files = write_shards(tmp_path, plan(), 100, no_progress, lambda: released.append(True))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) == len(released) > 1
    assert set(index["weight_map"]) == set(VALUES)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in VALUES.values())
    for name, file in index["weight_map"].items():
        torch.testing.assert_close(load_file(tmp_path / file)[name], VALUES[name], rtol=0, atol=0)


@pytest.mark.parametrize(("ahead", "held"), [(10**6, 1), (2 * 16, 1), (2 * 16 - 1, 0)])
def test_one_tensor_is_read_ahead_and_large_ones_are_not(tmp_path, monkeypatch, ahead, held):
    """While a tensor is built, at most `held` earlier ones are in memory."""
    monkeypatch.setattr(shards, "_AHEAD_BYTES", ahead)
    alive, most = [], []

    def build(i):
        most.append(fewest_alive(alive, held))
        content = np.full(4, float(i), dtype=np.float32)
        alive.append(weakref.ref(content))  # of what owns the memory, which every view of it keeps
        return torch.from_numpy(content)

    tensors = [PlannedTensor(f"t{i}", (4,), torch.float32, "test", lambda i=i: build(i)) for i in range(8)]
    (file,) = write_shards(tmp_path, tensors, "1GB", no_progress, lambda: None)
    assert len(most) == 8
    assert max(most) <= held
    assert all(torch.equal(load_file(file)[f"t{i}"], torch.full((4,), float(i))) for i in range(8))


def fewest_alive(references, wanted):
    """How many are held, once the thread that hashes has let go of what it has just finished."""
    deadline = time.monotonic() + 30
    while (count := sum(reference() is not None for reference in references)) > wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    return count


def test_reading_goes_on_while_a_tensor_is_written(tmp_path):
    """The second tensor is built before the first one is reported as written."""
    built = threading.Event()

    def second():
        built.set()
        return torch.ones(4)

    def written(step, done, total):
        assert built.wait(30), "nothing was read while the first tensor was written"

    tensors = [
        PlannedTensor("first", (4,), torch.float32, "test", lambda: torch.zeros(4)),
        PlannedTensor("second", (4,), torch.float32, "test", second),
    ]
    write_shards(tmp_path, tensors, "1GB", written, lambda: None)


def test_sources_are_given_back_between_two_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_RELEASE_BYTES", 40)
    building, events = threading.Lock(), []

    def build(i):
        with building:
            events.append(i)
            return torch.full((4,), float(i))

    def release():
        assert building.acquire(blocking=False), "released while a tensor was being built"
        building.release()
        events.append("release")

    tensors = [PlannedTensor(f"t{i}", (4,), torch.float32, "test", lambda i=i: build(i)) for i in range(7)]
    write_shards(tmp_path, tensors, "1GB", no_progress, release)
    assert events == [0, 1, 2, "release", 3, 4, 5, "release", 6, "release"]


def test_a_failure_ends_the_reading(tmp_path):
    built, before = [], set(threading.enumerate())

    def build(i):
        built.append(i)
        if i == 2:
            raise ConversionError("damaged")
        return torch.ones(4)

    tensors = [PlannedTensor(f"t{i}", (4,), torch.float32, "test", lambda i=i: build(i)) for i in range(5)]
    with pytest.raises(ConversionError, match="damaged"):
        write_shards(tmp_path, tensors, "1GB", no_progress, lambda: None)
    assert built == [0, 1, 2]
    built.clear()

    def full_disk(step, done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shards(tmp_path, tensors, "1GB", full_disk, lambda: None)
    assert built == [0, 1]
    assert set(threading.enumerate()) <= before


def test_types_and_sizes_that_are_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"'x' would be stored as torch\.int64"):
        write_shards(tmp_path, plan({"x": torch.ones(1, dtype=torch.int64)}), "1GB", no_progress, lambda: None)
    with pytest.raises(ConversionError, match="max_shard_size='huge'"):
        write_shards(tmp_path, plan(), "huge", no_progress, lambda: None)


def test_the_bar_stays_silent_without_a_terminal(capfd):
    with rich_progress() as progress:
        progress("Writing weights", 1, 2)
        progress("Writing weights", 2, 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = {"fine": torch.ones(3), "broken": torch.tensor([1.0, bad]).half()}
    with pytest.raises(ConversionError, match=r"'broken', stored as torch\.float16, would hold NaN or infinite"):
        write_shards(tmp_path, plan(values), "1GB", no_progress, lambda: None)
