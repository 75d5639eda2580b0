"""Numbers as the Hub reads them, there and back by its own classes."""

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, parse_eval_result_entries
from typer.testing import CliRunner

from reasonseg.cli.app import app
from reasonseg.conversion.card import card_results_of, render_card
from reasonseg.evaluation.published_results import (
    HUB_RESULTS,
    MODEL_INDEX,
    ResultsFileError,
    card_results,
    read_card_results,
    write_published_results,
)


NUMBERS = {"giou": 0.46123456, "giou_interval": [0.4, 0.5], "ciou": 0.5, "n_acc": None, "masks": 200}
RESULTS = card_results("reasonseg", "val", "paper", {"all": NUMBERS, "short": {"giou": 0.25}}, {"images": 200})


def test_both_forms_are_read_by_the_hubs_own_classes(tmp_path):
    files = write_published_results(tmp_path, "my-lisa", RESULTS, "paper")
    assert [file.name for file in files] == [MODEL_INDEX, HUB_RESULTS]
    read = read_card_results(files[0])
    assert read == RESULTS
    assert [(one.metric_name, one.metric_value) for one in read] == [
        ("gIoU", 46.1235),
        ("cIoU", 50.0),
        ("gIoU (short queries)", 25.0),
    ]
    assert read[0].metric_args == {"protocol": "paper", "interval_95": [40.0, 50.0]}
    entries = parse_eval_result_entries(yaml.safe_load(files[1].read_text(encoding="utf-8")))
    assert [(entry.task_id, entry.value) for entry in entries][:2] == [("val_giou", 46.1235), ("val_ciou", 50.0)]
    assert {entry.dataset_id for entry in entries} == {"Ricky06662/ReasonSeg_val"}
    assert "--protocol paper" in entries[0].notes
    card = ModelCardData(model_name="my-lisa", eval_results=read)
    assert ModelCard(f"---\n{card}\n---\n").data.eval_results == read


def test_a_data_set_without_a_copy_on_the_hub_needs_a_name(tmp_path):
    results = card_results("refzom", "test", "free", {"all": NUMBERS}, {})
    assert [file.name for file in write_published_results(tmp_path, "x", results, "free")] == [MODEL_INDEX]
    write_published_results(tmp_path, "x", results, "free", "me/Ref-ZOM")
    (first, _) = parse_eval_result_entries(yaml.safe_load((tmp_path / HUB_RESULTS).read_text(encoding="utf-8")))
    assert first.dataset_id == "me/Ref-ZOM"


def test_a_card_shows_the_results_and_keeps_them():
    card = render_card("lisa", "lisa", measured=RESULTS)
    assert [one.metric_value for one in ModelCard(card).data.eval_results][-3:] == [46.1235, 50.0, 25.0]
    assert card_results_of(card) == RESULTS
    assert card_results_of(render_card("lisa", "lisa")) == []


def test_the_command_enters_them_into_a_card(tmp_path):
    write_published_results(tmp_path, "my-lisa", RESULTS, "paper")
    arguments = ["card", "lisa-7b-v1", "--results", str(tmp_path / MODEL_INDEX), "--out", str(tmp_path / "README.md")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert card_results_of((tmp_path / "README.md").read_text(encoding="utf-8")) == RESULTS


@pytest.mark.parametrize("content", ["- a", "model-index: 3", "model-index:\n- name: x", "{", ""])
def test_files_that_hold_no_results(content, tmp_path):
    (tmp_path / "a.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ResultsFileError, match="holds no results of a model card"):
        read_card_results(tmp_path / "a.yaml")
    with pytest.raises(ResultsFileError, match="does not exist"):
        read_card_results(tmp_path / "b.yaml")
