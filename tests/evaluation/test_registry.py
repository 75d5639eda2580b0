"""The benchmarks by name: what is refused before anything heavy happens, and one that is added from outside."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import typer
from rich.table import Table
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.systems import SYSTEMS
from reasonseg.data.annotation_formats import FORMATS
from reasonseg.evaluation.registry import (
    BENCHMARKS,
    Benchmark,
    EvaluationOptions,
    Models,
    Outcome,
    Setting,
    UnknownBenchmarkError,
    find_benchmark,
    register_benchmark,
    whole_number,
)
from reasonseg.loading import import_object


def test_names_and_folders(tmp_path):
    assert find_benchmark("tabletop") is BENCHMARKS["tabletop"]
    assert find_benchmark(str(tmp_path)).reader.endswith("image_folder_questions")
    with pytest.raises(UnknownBenchmarkError, match="no data set 'nowhere': give one of tabletop"):
        find_benchmark("nowhere")


def test_names_on_the_hub(tmp_path, monkeypatch):
    on_hub = replace(FORMATS["datasets"], needs=())
    monkeypatch.setitem(FORMATS, "datasets", on_hub)
    assert find_benchmark("anna/photos@main") is find_benchmark(str(tmp_path))
    monkeypatch.setitem(FORMATS, "datasets", replace(on_hub, needs=("no_such_package",)))
    with pytest.raises(UnknownBenchmarkError, match=r"no folder 'anna/photos': .*: pip install no_such_package"):
        find_benchmark("anna/photos")


def test_what_an_entry_names_exists(tmp_path):
    options = EvaluationOptions(dataset="x", out=tmp_path)
    for benchmark in (*BENCHMARKS.values(), find_benchmark(str(tmp_path))):
        assert callable(import_object(benchmark.reader)), benchmark.name
        assert callable(import_object(benchmark.run)), benchmark.name
        assert all(hasattr(options, name) for name in (*benchmark.needs, *benchmark.reads.values())), benchmark.name
        assert benchmark.metrics, benchmark.name
        assert set(benchmark.models.systems) <= set(SYSTEMS), benchmark.name
        for system in benchmark.models.systems:
            assert benchmark.models.command in SYSTEMS[system].commands


def test_the_help_comes_from_the_entries():
    command = typer.main.get_command(app).commands["evaluate"]
    helps = {parameter.name: parameter.help for parameter in command.params}
    for benchmark in BENCHMARKS.values():
        assert f"`{benchmark.name}`: {benchmark.summary} ({', '.join(benchmark.metrics)})" in helps["dataset"]
        for name, how in benchmark.protocols.items():
            assert len(benchmark.protocols) == 1 or f"`{benchmark.name}` {name}: {how}" in helps["protocol"]
        assert all(split in helps["split"] for split in benchmark.splits)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_unknown_protocols_and_settings_are_refused(name, tmp_path):
    shown = re.escape(name)
    with pytest.raises(UnknownBenchmarkError, match=rf"--dataset {shown} has no protocol 'x'; choose one of"):
        BENCHMARKS[name].evaluate(EvaluationOptions(dataset=name, out=tmp_path, model="m", protocol="x"))
    with pytest.raises(UnknownBenchmarkError, match=rf"--dataset {shown} has no setting 'colour'"):
        BENCHMARKS[name].evaluate(EvaluationOptions(dataset=name, out=tmp_path, model="m", given={"colour": "red"}))


def test_missing_options_are_named_as_on_the_command_line(tmp_path):
    with pytest.raises(UnknownBenchmarkError, match="--dataset tabletop also needs --model"):
        BENCHMARKS["tabletop"].evaluate(EvaluationOptions(dataset="tabletop", out=tmp_path, scenes=1))


@pytest.mark.parametrize(
    ("name", "typed", "refused"),
    [
        ("tabletop", ("images", "data"), "--images, --data"),
        ("v7w", ("scenes", "rule", "split"), "--scenes, --rule, --split"),
        ("vip-bench", ("images",), "--images"),
        ("refcoco", ("annotations", "rule"), "--annotations, --rule"),
    ],
)
def test_options_that_would_be_ignored_are_refused(name, typed, refused, tmp_path):
    given = {"model": "m", "annotations": tmp_path, "data": tmp_path, "images": tmp_path}
    options = EvaluationOptions(dataset=name, out=tmp_path, typed=(*typed, "limit"), **given)
    with pytest.raises(
        UnknownBenchmarkError, match=rf"--dataset {name} does not use {refused}; leave it out. It uses"
    ):
        BENCHMARKS[name].evaluate(options)


@pytest.mark.parametrize(
    ("name", "setting", "text", "message"),
    [
        ("v7w", "seed", "-1", "must be a whole number of at least 0"),
        ("v7w", "temperature", "warm", "must be a number of at least 0"),
        ("refcoco", "padded_processes", "0", "must be a whole number of at least 1"),
        ("v7w", "alpha", "half", "must be a whole number of at least 0"),
        ("v7w", "preprocess", "crop", "is not known; it is pad or resize"),
        ("coco", "box_threshold", "high", "cannot be read: it is a number"),
        ("coco", "attention_layers", "a,b", "cannot be read: it is whole numbers with commas"),
        ("coco", "subtract_mean", "maybe", "cannot be read: it is yes or no"),
        ("coco", "question", " ", "cannot be read: it is empty"),
    ],
)
def test_settings_that_cannot_be_read(name, setting, text, message, tmp_path):
    options = EvaluationOptions(dataset=name, out=tmp_path, given={setting: text})
    with pytest.raises(UnknownBenchmarkError, match=rf"^--set {setting}={text} {message}\.$"):
        BENCHMARKS[name].evaluate(options)


def test_the_registry_is_light():
    # As the command imports it; any other import of the package registers the models and needs torch.
    code = "import sys; import reasonseg.evaluation.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def count_lines(path, most):
    return path.read_text(encoding="utf-8").splitlines()[:most]


class Counted:
    """The result of the benchmark below."""

    cases = ()

    def __init__(self, lines):
        self.lines = lines

    def to_dict(self):
        return {"lines": self.lines}


def run_counting(options, lines):
    table = Table(options.protocol)
    return Outcome(Counted(len(lines) * options.settings["weight"]), table, {"dataset": options.dataset})


def test_one_entry_adds_a_benchmark(tmp_path, monkeypatch):
    benchmark = Benchmark(
        "lines",
        "lines of a file",
        Models("segment"),
        reader=f"{__name__}:count_lines",
        reads={"path": "annotations", "most": "limit"},
        run=f"{__name__}:run_counting",
        protocols={"plain": "as they are"},
        metrics=("lines",),
        needs=("annotations",),
        settings={"weight": Setting("of a line; 1 by default", whole_number, 1)},
    )
    monkeypatch.setitem(BENCHMARKS, "lines", None)  # removed again after the test
    del BENCHMARKS["lines"]
    register_benchmark(benchmark)
    with pytest.raises(ValueError, match="a benchmark 'lines' already"):
        register_benchmark(benchmark)
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")

    def run(*more):
        arguments = ("evaluate", "--dataset", "lines", "--out", tmp_path / "out", *more)
        return CliRunner().invoke(app, list(map(str, arguments)))

    done = run("--annotations", tmp_path / "a.txt", "--limit", 2, "--set", "weight=5", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"dataset": "lines", "lines": 10}
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8")) == json.loads(done.stdout)
    assert "plain" in run("--annotations", tmp_path / "a.txt").stdout
    assert "--dataset lines also needs --annotations" in run().stderr
