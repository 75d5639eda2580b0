"""`python -m benchmarks`: what it finds, what it prints, and what a benchmark that fails does to the others."""

import io
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import convert_full_size, full_size_inference, gpu, measurement, own_process, shared_image
from benchmarks.__main__ import Outcome, benchmark_modules, main, run_benchmarks
from benchmarks.measurement import Measurement, print_table
from benchmarks.own_process import FunctionFailedError, run_alone


WORKING = """
from benchmarks.measurement import Measurement
SMALL = {"size": 3}
def measurements(size=100):
    print("not part of the table")
    yield Measurement("a thing, against another", float(size), 6.0)
    yield Measurement("things per second", 8.0, 2.0, "things/s", more_is_better=True)
"""
FAILING = WORKING + "    raise ValueError('the second half')\n"
WITHOUT_PACKAGE = "import a_package_that_nobody_has\n" + WORKING
IN_PARTS = """
import os, shutil
from pathlib import Path
from benchmarks.own_process import run_alone
FOLDER = Path(__file__).with_name("work")
SMALL = {}
def part():
    (FOLDER / "pid").write_text(str(os.getpid()))
    import time
    time.sleep(60)
def measurements():
    FOLDER.mkdir()
    try:
        run_alone("written_parts:part")
    finally:
        shutil.rmtree(FOLDER)
    yield None
"""
UNFINISHED = "SMALL = {}\n"
SLOW = "def wait(seconds):\n    import time\n    time.sleep(seconds)\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    sources = {"good": WORKING, "bad": FAILING, "lacking": WITHOUT_PACKAGE, "helper": UNFINISHED, "slow": SLOW}
    for name, source in sources.items():
        (tmp_path / f"written_{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_every_benchmark_runs_whatever_becomes_of_the_others(written):
    modules = benchmark_modules(written)
    assert modules == ["written_bad", "written_good", "written_lacking"]
    told = io.StringIO()
    outcome = Outcome()
    run_benchmarks(modules, timeout=60, console=Console(file=told), outcome=outcome)
    rows = [
        Measurement("a thing, against another", 3.0, 6.0),
        Measurement("things per second", 8.0, 2.0, "things/s", more_is_better=True),
    ]
    assert outcome.rows == [*rows, *rows]  # also what the one that failed had measured by then
    assert [row.ratio for row in rows] == [2.0, 4.0]
    assert list(outcome.failed) == ["written_bad"]
    assert "ValueError: the second half" in outcome.failed["written_bad"]
    assert outcome.not_run == {"written_lacking": "needs a_package_that_nobody_has"}
    assert "3 of 3: written_lacking: needs a_package_that_nobody_has" in told.getvalue()


def test_a_benchmark_that_takes_too_long_is_ended(written):
    with pytest.raises(FunctionFailedError, match=r"took more than 0 s"):
        run_alone("written_slow:wait", timeout=0.2, seconds=60)


def test_what_is_ended_takes_its_parts_and_its_folders_with_it(tmp_path, monkeypatch):
    (tmp_path / "written_parts.py").write_text(IN_PARTS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{own_process.ROOT}:{tmp_path}")
    named = ["benchmarks.__main__:small_run", json.dumps({"module": "written_parts"}), str(tmp_path / "answer")]
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.own_process", *named])
    pid, end = tmp_path / "work" / "pid", time.monotonic() + 60
    while not (pid.exists() and pid.read_text(encoding="utf-8")) and time.monotonic() < end:
        time.sleep(0.02)
    part = int(pid.read_text(encoding="utf-8"))
    own_process._end(child)
    assert not (tmp_path / "work").exists()
    with suppress(FileNotFoundError):  # where nobody waits for what is orphaned it stays a name
        assert "Z" in Path(f"/proc/{part}/stat").read_text(encoding="utf-8").rpartition(")")[2]


@pytest.mark.parametrize(
    ("benchmark", "words", "message"),
    [
        (main, ["--timeout", "-1"], "argument --timeout: it is -1; it must be above 0."),
        (full_size_inference.main, ["--share", "2"], "argument --share: it is 2; it must be above 0 and at most 1."),
        (full_size_inference.main, ["--share", "nan"], "argument --share: it is nan; it must be above 0"),
        (full_size_inference.main, ["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (gpu.main, ["--minutes", "soon"], "argument --minutes: invalid number value: 'soon'"),
        (shared_image.main, ["--questions", "0"], "argument --questions: it is 0; it must be at least 1."),
        (gpu.main, ["--out", "."], "argument --out: . is a folder; name a file."),
        (gpu.main, ["--out", f"{__file__}/numbers.json"], "is no folder to write in (File exists); name another."),
        (full_size_inference.main, ["--folder", __file__], "is no folder to write in (File exists); name another."),
        (convert_full_size.main, ["--folder", f"{__file__}/a"], "is no folder to write in (Not a directory)"),
    ],
)
def test_a_wrong_option_is_said_before_anything_is_made(benchmark, words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    with pytest.raises(SystemExit) as error:
        benchmark()
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_names_and_small_sizes_of_this_repository(capsys):
    found = benchmark_modules(Path(measurement.__file__).parent)
    assert {"cached_generation", "full_size_inference", "gpu", "quantized_language_model"} <= set(found)
    with pytest.raises(SystemExit) as error:
        main(["no_such_benchmark"])
    assert error.value.code == 2
    told = capsys.readouterr().err
    assert re.search(r"there is no benchmark no_such_benchmark; there are .*cached_generation", told)


def test_the_table_is_one_of_markdown(capsys):
    print_table([Measurement("a [SEG] drawn, against two", 0.01234, 20.0), Measurement("alone", 1234.0, unit="MB")])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["what", "ours", "baseline", "ratio"]
    assert cells[2:] == [
        ["a [SEG] drawn, against two", "0.0123 s", "20 s", "1,621 x"],
        ["alone", "1,234 MB", "", ""],
    ]
