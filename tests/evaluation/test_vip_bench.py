"""ViP-Bench: its files, scores over several runs, the tables, and going on after a stop."""

import json

import pytest

from reasonseg.data.vip_bench import VipBenchError, read_vip_bench
from reasonseg.evaluation.judges import TextMatchJudge, Verdict
from reasonseg.evaluation.vip_bench import (
    grade,
    scores_by_capability,
    write_results,
    write_tables,
)


METADATA = {
    "v1_0": {"question": "<obj>?", "answer": "red", "capability": ["rec", "ocr"]},
    "v1_1": {"question": "?", "answer": "2", "capability": ["rec", "math", "rec"]},
    "v1_2": {"question": "?", "answer": "a<AND>b", "capability": ["ocr", "rec"]},
    "v1_3": {"question": "?", "answer": "left", "capability": ["spat"]},
}
ANSWERS = {"v1_0": "a red one", "v1_1": "three", "v1_2": "only a", "v1_3": "left"}


@pytest.fixture
def folder(tmp_path):
    split = tmp_path / "bench" / "bbox"
    split.mkdir(parents=True)
    (split.parent / "vip-bench-meta-data.json").write_text(json.dumps(METADATA), encoding="utf-8")
    rows = [{"question_id": n, "image": f"{n}.png", "text": f"within the red rectangle {n}?"} for n in range(4)]
    (split / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return split.parent


class Scripted:
    name = "scripted"

    def __init__(self, *scores):
        self.scores, self.asked = list(scores), []

    def judge(self, question, truth, prediction, plain_question=None):
        self.asked.append((question, truth, prediction, plain_question))
        return Verdict(self.scores.pop(0), "said", "judge-1")


def test_files(folder):
    questions = read_vip_bench(folder, "bbox")
    assert [question.id for question in questions] == list(METADATA)
    assert questions[1].image == folder / "bbox" / "images" / "1.png"
    assert questions[0].text == "within the red rectangle 0?"
    assert questions[1].capabilities == ("rec", "math")
    with pytest.raises(VipBenchError, match="no split 'x'; it has bbox and human"):
        read_vip_bench(folder, "x")
    with pytest.raises(VipBenchError, match=r"lacks .*human/questions.jsonl"):
        read_vip_bench(folder, "human")
    (folder / "bbox" / "questions.jsonl").write_text('{"question_id": 9, "image": "", "text": ""}', encoding="utf-8")
    with pytest.raises(VipBenchError, match="do not have the same ids"):
        read_vip_bench(folder, "bbox")


def test_scores(folder, tmp_path):
    questions = read_vip_bench(folder, "bbox")
    judge = Scripted(1.0, 0.0, 0.5, 1.0, 1.0, 0.2, 0.5, 0.7)
    path = tmp_path / "grade.json"
    steps = []
    grades = grade(questions, ANSWERS, judge, 2, path, progress=lambda done, total: steps.append((done, total)))
    assert judge.asked[0] == ("within the red rectangle 0?", "red", "a red one", "<obj>?")
    said = {"model": ["judge-1"] * 2, "content": ["said"] * 2, "score": [0.0, 0.2]}
    assert grades["v1_1"] == {"prediction": "three", **said}
    assert json.loads(path.read_text(encoding="utf-8")) == grades
    assert steps[-1] == (8, 8)

    result = scores_by_capability(questions, grades, 2)
    # rec: (1.5 + 1.7) / 6; ocr: (1.5 + 1.5) / 4; totals 2.5 / 4 and 2.4 / 4
    assert result.capabilities == {"rec": 53.3, "ocr": 75.0, "math": 10.0, "spat": 85.0, "total": 61.2}
    assert next(iter(result.capabilities)) == "rec"
    assert result.counts == {"rec": 3, "ocr": 2, "math": 1, "spat": 1, "total": 4}
    assert result.integrations == {"ocr_rec": 75.0, "math_rec": 10.0, "spat": 85.0, "total": 61.2}
    assert result.integration_counts == {"ocr_rec": 2, "math_rec": 1, "spat": 1, "total": 4}
    assert result.runs == [62.5, 60.0]
    assert result.std == 1.2
    assert scores_by_capability(questions, grades, 1).std == 0.0

    write_tables(result, "model", tmp_path / "a.csv", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines() == [
        ",rec,ocr,math,spat,total,std,runs",
        'model,53.3,75.0,10.0,85.0,61.2,1.2,"[62.5, 60.0]"',
    ]
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").startswith(",ocr_rec,math_rec,spat,total,std,runs\n")
    assert not list(tmp_path.glob("*.partial"))


def test_a_stopped_grading_goes_on(folder, tmp_path):
    questions, path = read_vip_bench(folder, "bbox"), tmp_path / "grade.json"
    stopping = Scripted(1.0, 0.5)
    with pytest.raises(IndexError):
        grade(questions, ANSWERS, stopping, 1, path)
    judge = Scripted(0.0, 0.0)
    grades = grade(questions, ANSWERS, judge, 1, path)
    assert [grades[key]["score"] for key in METADATA] == [[1.0], [0.5], [0.0], [0.0]]
    assert grade(questions, ANSWERS, Scripted(), 1, path) == grades
    # Another answer has to be scored again.
    # A changed answer has to be scored again.
    changed = grade(questions, {**ANSWERS, "v1_2": "b"}, Scripted(0.9), 1, path)
    assert changed["v1_2"]["score"] == [0.9]


def test_rules_and_missing_answers(folder, tmp_path):
    questions = read_vip_bench(folder, "bbox")
    lines = [{"question_id": key.removeprefix("v1_"), "text": text} for key, text in ANSWERS.items()]
    results = write_results(lines, tmp_path / "bbox.json")
    assert json.loads((tmp_path / "bbox.json").read_text(encoding="utf-8")) == results == ANSWERS
    grades = grade(questions, results, TextMatchJudge("keyword"), 1, tmp_path / "grade.json")
    assert scores_by_capability(questions, grades, 1).capabilities["total"] == 62.5
    with pytest.raises(VipBenchError, match="no answer to 1 questions: v1_3"):
        grade(
            questions,
            {key: ANSWERS[key] for key in list(ANSWERS)[:3]},
            TextMatchJudge("exact"),
            1,
            tmp_path / "g.json",
        )
