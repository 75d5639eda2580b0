"""ViP-LLaVA's benchmarks through `reasonseg evaluate`, on a tiny model."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.data.region_data import RegionFile
from reasonseg.evaluation import vip_bench
from reasonseg.evaluation.region_accuracy import RegionQuestions, choice_result, is_right
from reasonseg.evaluation.registry import EvaluationOptions, find_benchmark
from tests.support.parity_data import PARITY
from tests.support.tiny_vip_llava import SIDE, write_repo


BOXES = [[10, 12, 60, 70], [50, 30, 120, 100], [30, 60, 90, 110], [5, 5, 40, 40]]
RECORDED = PARITY / "vip_llava" / "visual_prompts"
VCR = next(
    case["source"]
    for case in json.loads((RECORDED / "organizer.json").read_text(encoding="utf-8"))["cases"]
    if case["name"] == "organizer_vcr_vcr_qa_1320"
)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return write_repo(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in ("input0.png", "vcr_meta.json"):
        shutil.copy(RECORDED / name, folder)
    row = {"image": "input0.png"}
    files = {
        "v7w": [
            {**row, "id": f"v7w-{n}", "bboxes": BOXES, "question": "Which?", "answer": BOXES[n]} for n in range(3)
        ],
        "pointqa": [
            {**row, "id": f"pointQA_twice-{n}", "bboxes": BOXES[:1], "general_question": "How many?", "answer": n}
            for n in range(3)
        ],
        "vcr": [{**VCR, **row, "id": f"vcr-{n}"} for n in range(2)],
    }
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def evaluate(dataset, repo, data, out, *more):
    arguments = ["evaluate", "--dataset", dataset, "--out", out, "--max-new-tokens", 2, "--batch-size", 2, "--json"]
    arguments += ["--model", repo] if repo is not None else []
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--annotations", data, *more)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        ("v7w", {"v7w": 3}),
        ("pointqa", {"pointqa-looktwice": 3}),
        ("vcr", {"q-a": 2, "qa-r": 2, "q-ar": 2}),
    ],
)
def test_accuracy(repo, data, tmp_path, dataset, counts):
    numbers = evaluate(dataset, repo, data / f"{dataset}.json", tmp_path)
    assert numbers["questions"] == counts
    assert numbers == json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    name = next(iter(counts))
    path = tmp_path / name / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == counts[name]
    assert "<image>" not in lines[0]["prompt"]
    # Right answers count: those of the file, put in the model's mouth.
    for line in lines:
        line["text"] = line["metadata"]["answer"].lower()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert evaluate(dataset, repo, data / f"{dataset}.json", tmp_path)["accuracy"][name] == 1.0


def test_questions_are_drawn_the_same_again(data):
    file = RegionFile(data / "v7w.json")
    first, again = RegionQuestions(file, seed=5)[1], RegionQuestions(file, seed=5)[1]
    assert (first.text, first.answer, first.id) == (again.text, "B", "v7w-1")
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    other = RegionQuestions(file, seed=6)[1]
    assert other.text != first.text
    assert first.image.size == Image.open(data / "input0.png").size
    assert RegionQuestions(file, squashed=True, side=SIDE)[0].image.size == (SIDE, SIDE)
    assert len(RegionQuestions(file, limit=2)) == 2
    with pytest.raises(IndexError):
        RegionQuestions(file, limit=2)[2]


@pytest.mark.parametrize("option", ["--revision", "--images", "--annotations"])
def test_answers_about_other_files_are_not_gone_on_with(repo, data, tmp_path, option):
    shutil.copy(data / "v7w.json", data / "other.json")
    evaluate("v7w", repo, data / "v7w.json", tmp_path, "--limit", 1)
    value = {"--revision": "main", "--images": data, "--annotations": data / "other.json"}[option]
    arguments = ["evaluate", "--dataset", "v7w", "--model", repo, "--annotations", data / "v7w.json", option, value]
    arguments += ["--out", tmp_path, "--max-new-tokens", 2, "--limit", 1]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert f"was made with {option.removeprefix('--')} = " in " ".join(result.stderr.split())


def write_bench(bench, data):
    (bench / "bbox" / "images").mkdir(parents=True)
    shutil.copy(data / "input0.png", bench / "bbox" / "images")
    rows = [{"question_id": n, "image": "input0.png", "text": f"What is {n}?"} for n in range(3)]
    (bench / "bbox" / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    metadata = {f"v1_{n}": {"question": "?", "answer": "red<OR>blue", "capability": ["rec"]} for n in range(3)}
    (bench / "vip-bench-meta-data.json").write_text(json.dumps(metadata), encoding="utf-8")
    return bench


def test_vip_bench(repo, data, tmp_path):
    bench, out = write_bench(tmp_path / "bench", data), tmp_path / "out"
    numbers = evaluate("vip-bench", repo, bench, out, "--split", "bbox")
    assert numbers["counts"] == {"rec": 3, "total": 3}
    assert numbers["judge"] == "keyword"
    answers = json.loads((out / "bbox.json").read_text(encoding="utf-8"))
    assert list(answers) == ["v1_0", "v1_1", "v1_2"]
    lines = (out / "bbox" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == ["0", "1", "2"]
    assert (out / "bbox-keyword-capabilities.csv").is_file()
    # Answers of elsewhere are judged without a model.
    (out / "bbox.json").write_text(json.dumps({**answers, "v1_0": "a red one"}), encoding="utf-8")
    numbers = evaluate("vip-bench", None, bench, out, "--split", "bbox", "--set", "judge=exact", "--set", "runs=2")
    assert numbers["runs"] == [0.0, 0.0]
    # The answer that changed is scored again.
    numbers = evaluate("vip-bench", None, bench, out, "--split", "bbox", "--set", "judge=keyword")
    assert numbers["capabilities"]["total"] >= 33.3
    # A copy of the benchmark elsewhere may have other images.
    arguments = ["evaluate", "--dataset", "vip-bench", "--model", repo, "--out", out, "--max-new-tokens", 2]
    arguments += ["--annotations", write_bench(tmp_path / "copy", data)]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1
    assert "was made with annotations = " in " ".join(result.stderr.split())


def test_only_the_main_process_judges_vip_bench(data, tmp_path, monkeypatch):
    """The others do not take the scores that an earlier run left for those of this one."""
    bench, out = write_bench(tmp_path / "bench", data), tmp_path / "out"
    out.mkdir()
    (out / "bbox.json").write_text(json.dumps({f"v1_{n}": "red" for n in range(3)}), encoding="utf-8")
    options = EvaluationOptions(dataset="vip-bench", out=out, annotations=bench)
    assert find_benchmark("vip-bench").evaluate(options).result.capabilities["total"] == 100.0
    before = {path: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(vip_bench, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    elsewhere = find_benchmark("vip-bench").evaluate(options)
    assert elsewhere.result is elsewhere.table is None
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "v7w", "--model", "m"), "also needs --annotations"),
        (("--dataset", "v7w", "--model", "m", "--annotations", "no.json", "--set", "preprocess=x"), "pad or resize"),
        (("--dataset", "vip-bench", "--annotations", "nowhere"), "lacks nowhere/vip-bench-meta-data.json"),
    ],
)
def test_what_cannot_be_run(arguments, message, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_answers_must_be_equal():
    assert is_right(" a ", "A")
    assert not is_right("A.", "A")
    first = [{"text": text, "metadata": {"answer": "B"}} for text in "BbAC"]
    second = [{"text": text, "metadata": {"answer": "D"}} for text in "DADA"]
    result = choice_result({"q-a": first, "qa-r": second}, all_of_them="q-ar")
    assert result.to_dict() == {
        "accuracy": {"q-a": 0.5, "qa-r": 0.5, "q-ar": 0.25},
        "questions": {"q-a": 4, "qa-r": 4, "q-ar": 4},
    }
    assert result.table("VCR").row_count == 3
    with pytest.raises(ValueError, match="There are no questions to count"):
        choice_result({"v7w": []})
