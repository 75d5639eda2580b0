"""The benchmarks by name: what is refused before anything heavy happens."""

import subprocess
import sys

import pytest

from reasonseg.benchmarks import BENCHMARKS, EvaluationOptions, UnknownBenchmarkError, find_benchmark


def test_names_and_folders(tmp_path):
    assert find_benchmark("tabletop") is BENCHMARKS["tabletop"]
    assert find_benchmark(str(tmp_path)).runner.endswith("run_image_folder")
    with pytest.raises(UnknownBenchmarkError, match="no data set 'nowhere': give one of tabletop"):
        find_benchmark("nowhere")


def test_every_runner_exists():
    for name, benchmark in BENCHMARKS.items():
        module, _, function = benchmark.runner.partition(":")
        assert callable(getattr(__import__(f"reasonseg.{module}", fromlist=[function]), function)), name


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_unknown_protocols_and_settings_are_refused(name, tmp_path):
    with pytest.raises(UnknownBenchmarkError, match=rf"--dataset {name} has no protocol 'x'; choose one of"):
        BENCHMARKS[name].run(EvaluationOptions(dataset=name, out=tmp_path, model="m", protocol="x"))
    with pytest.raises(UnknownBenchmarkError, match=rf"--dataset {name} has no setting 'colour'"):
        BENCHMARKS[name].run(EvaluationOptions(dataset=name, out=tmp_path, model="m", settings={"colour": "red"}))


def test_missing_options_are_named_as_on_the_command_line(tmp_path):
    with pytest.raises(UnknownBenchmarkError, match="--dataset tabletop also needs --model"):
        BENCHMARKS["tabletop"].run(EvaluationOptions(dataset="tabletop", out=tmp_path, scenes=1))


def test_the_registry_is_light():
    code = "import sys, reasonseg.benchmarks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
