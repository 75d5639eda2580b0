"""Several processes that share the images of one command, as `torchrun` and `accelerate launch` start them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch.distributed import HashStore, TCPStore
from typer.testing import CliRunner

from reasonseg.cli import running
from reasonseg.cli.app import app
from reasonseg.cli.failures import CommandError
from reasonseg.cli.processes import Processes, launched_processes


def in_threads(count: int, run) -> list:
    """What `run` returns, or raises, for each of some processes that share a store; they are threads here."""
    store, found = HashStore(), [None] * count

    def call(index: int) -> None:
        try:
            found[index] = run(Processes(index, count, store))
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(count)]
    for thread in reversed(threads):  # the first begins last
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    return found


def test_every_batch_goes_to_one_process():
    batches = [[number] for number in range(50)]

    def run(one: Processes):
        decided = one.agree(lambda: {"images": ["a\udce9.png"], "of": one.index})
        mine = [batch for batch in one.share(batches) if one.count_done(1)]
        return decided, one.agree(lambda: 7), mine, one.gather([one.index])

    found = in_threads(3, run)
    assert [decided for decided, *_ in found] == [{"images": ["a\udce9.png"], "of": 0}] * 3
    assert sorted(batch for _, _, mine, _ in found for batch in mine) == batches
    assert [gathered for *_, gathered in found] == [[0, 1, 2], [], []]
    alone = Processes()
    assert list(alone.share(batches)) == batches
    assert [alone.count_done(2), alone.count_done(1), alone.gather([3])] == [2, 3, [3]]


def test_nobody_waits_for_a_process_that_failed():
    def first_fails(one: Processes):
        if one.is_first:
            one.say_failed()
            raise ValueError("bad arguments")
        return one.agree(lambda: None)

    first, *others = in_threads(3, first_fails)
    assert isinstance(first, ValueError)
    assert [type(other) for other in others] == [typer.Exit] * 2

    def last_fails(one: Processes):
        one.agree(lambda: None)
        if one.index == 2:
            one.say_failed()
            raise ValueError("out of memory")
        return one.gather([])

    first, second, _ = in_threads(3, last_fails)
    assert isinstance(first, CommandError)
    assert "Process 2 of 3 has failed" in str(first)
    assert second == []


def test_each_process_has_a_device_of_its_own(monkeypatch):
    """As far as this can be seen without accelerators: which one is asked for."""
    asked = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: asked.append(("current", index)))
    monkeypatch.setattr(torch, "empty", lambda *size, device: asked.append(str(device)))
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert str(running.torch_device("auto")) == str(running.torch_device("cuda")) == "cuda:3"
    assert str(running.torch_device("cuda:1")) == "cuda:1"
    assert str(running.torch_device("cpu")) == "cpu"
    assert ("current", 3) in asked
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert str(running.torch_device("auto")) == "cpu"
    monkeypatch.delenv("ACCELERATE_USE_CPU")

    def refuse(*size, device):
        raise RuntimeError("CUDA error: invalid device ordinal")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(CommandError, match=r"invalid device ordinal.*Start no more processes than there are devices"):
        running.torch_device("auto")


# ---- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    """Seven images, one of them bad."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    (folder / "3b.png").write_text("no image")
    return folder


def command(images: Path, out: Path, *more: object) -> list[str]:
    given = ("segment", images, "-p", "the red cup", "--reject-threshold", 0, "-m", "embedded", "-o", out, *more)
    return [str(argument) for argument in given]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_processes_write_what_one_writes(images, tmp_path):
    """Here they resume a killed run of one."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert CliRunner().invoke(app, command(images, alone, "--batch-size", "2", "--workers", "0")).exit_code == 1
    shutil.copytree(alone, shared)
    lines = (shared / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (shared / "results.jsonl").write_text(lines[4] + lines[1][:50], encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    process = subprocess.run(
        [*launch, "-m", "reasonseg", *command(images, shared, "--batch-size", "2", "--json")],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert process.returncode == 1, process.stderr
    assert content(shared) == content(alone)
    done = [json.loads(line)["image"] for line in process.stdout.splitlines()]
    assert sorted(Path(image).stem for image in done) == ["0", "1", "2", "3", "5"]
    for told in ("3b.png: ", "1 of 7 images failed", "1 of 7 images are done already", "Segmenting: 6/6"):
        assert process.stderr.count(told) == 1, process.stderr
    assert process.stderr.count("Traceback (most recent call last)") == 1, "the one of torchrun itself"


def test_launched_processes_meet_at_the_address_of_the_launcher(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(TCPStore, "127.0.0.1", port, 2, is_master=False)
        with suppress(KeyError), launched_processes() as first:
            assert (first.index, first.count, first.is_first) == (0, 2, True)
            raise KeyError("the others are told")
        assert other.result().check(["reasonseg/ended/0"])
    monkeypatch.setenv("WORLD_SIZE", "1")
    with launched_processes() as alone:
        assert (alone.count, alone.agree(lambda: [1])) == (1, [1])
