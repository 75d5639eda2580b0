"""Every card renders with metadata, sizes, a licence chain and sourced numbers."""

import ast
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion import systems as conversion_systems
from reasonseg.conversion.card import (
    CARDS,
    card_name,
    card_trainings,
    card_values,
    check_card,
    known_cards,
    pin_card,
    pinned_repository,
    publishing_permission,
    read_card_values,
    render_card,
)
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import update_manifest
from reasonseg.conversion.verify import verify_repository
from reasonseg.modeling.configuration_lisa import LisaConfig
from tests.support.hub_server import pinned_revision


CONFIG = LisaConfig(seg_token_id=5)
PUBLISHED = {
    *(
        f"lisa-{name}{suffix}"
        for name in ("7b-v1", "13b-llama2-v0", "13b-llama2-v1")
        for suffix in ("", "-explanatory")
    ),
    *(f"gsva-{size}-{stage}" for size in ("7b", "13b", "llama2-13b") for stage in ("pt", "ft-gres", "ft-res")),
    "ivm-v1.0",
    *(f"vip-llava-{name}" for name in ("7b", "13b", "llama-3-8b", "phi-3-mini-3.8b")),
    "difflmm-llava-v1.5-7b-lora",
    *(f"sa2va-{name}" for name in ("qwen3-vl-2b", "qwen3-vl-4b", "qwen2_5-vl-3b", "qwen2_5-vl-7b", "llava-1.5-7b")),
    *(f"sa2va-{name}" for name in ("1b", "4b", "internvl3-2b", "internvl3-8b", "internvl3-14b")),
    "sa2va-qwen3-vl-4b-sam3",
}
OWN = "gsva-tabletop"  # nobody has published it before; it comes with the package
SYSTEMS = [
    "lisa",
    "gsva",
    "sa2va",
    "ivm",
    "vip_llava",
    "difflmm",
    "attend_and_segment",
    "reasoning_segmentation",
    "coordinates",
]
TRAINING = {
    "base": "org/lisa",
    "data": "my photographs",
    "data_licence": "mine",
    "recipe": {"model": "org/lisa", "trained": [r"vlm\..*"], "data": {"kind": "image_folder", "path": "train"}},
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def system_of(name):
    return next(system for system in SYSTEMS if name.startswith(system.replace("_", "-")))


def test_every_published_checkpoint_has_values():
    assert set(known_cards()) == PUBLISHED | {OWN}


def test_every_system_has_values():
    assert set(SYSTEMS) == set(conversion_systems.SYSTEMS)
    for system in SYSTEMS:
        assert ModelCard(render_card(system, "any")).data.library_name == "transformers"


@pytest.mark.parametrize("name", [*sorted(PUBLISHED), "lisa-unheard-of", "gsva-unheard-of", "attend-and-segment-any"])
@pytest.mark.parametrize("form", ["full", "trained"])
def test_cards_render(name, form):
    system = system_of(name)
    text = render_card(system, name.upper(), CONFIG, torch.bfloat16, form)
    card = ModelCard(text, ignore_metadata_errors=False)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag in {"image-segmentation", "image-text-to-text"}
    assert system.replace("_", "-") in card.data.tags
    assert card.data.license in {"apache-2.0", "llama2", "llama3", "mit", "other"}
    assert (card.data.license == "other") == bool(card.data.license_name) or name not in PUBLISHED
    assert card_name(text) == (name if name in PUBLISHED else None)
    for part in ("32 layers of 4096", "256 image tokens", "bfloat16", "| language model |", "| original code |"):
        assert part in text
    for row in read_card_values(name, system)["chain"]:
        assert f"| {row['part']} | {row['work']} | {row['licence']} |\n" in text
    assert not re.search(r"{{|{%|\n\n\n|[ \t]\n|None|Undefined", text)
    assert text == render_card(system, name.upper(), CONFIG, torch.bfloat16, form)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_values_are_complete(name):
    values = read_card_values(name)
    assert name.startswith(values["title"].lower())
    assert values["base"] in yaml.safe_load((CARDS / "bases.yaml").read_text()).keys() - {"unknown"}
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", repo) for repo in values["base_models"])
    assert len(values["base_models"]) >= 2
    assert [row["part"] for row in values["chain"]][:2] == ["original code", "language model"]
    assert "data" in [row["part"] for row in values["chain"]]
    for row in values["chain"]:
        assert set(row) == {"part", "work", "licence"}
    assert re.match(r"@\w+\{\w+,\n", values["citation"])
    if values["results"]:
        assert re.search(r"/[0-9a-f]{40}/", values["results_source"]["url"])  # what stands there cannot change


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_snippet_is_python_that_can_be_pinned(name):
    text = render_card(system_of(name), name)
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(snippet)
    assert pinned_revision(text) is None
    pinned = pin_card(text, "org/name", COMMIT)
    assert 'repo = "org/name"\n' in pinned
    assert f'revision = "{COMMIT}"\n' in pinned
    assert pinned_revision(pinned) == COMMIT
    other = COMMIT[::-1]
    assert pin_card(pinned, "org/name", other) == pin_card(text, "org/name", other)


def test_the_card_of_trained_tensors_is_pinned_too():
    text = render_card("lisa", "lisa-7b-v1", form="trained")
    assert pinned_revision(text) is None
    pinned = pin_card(text, "org/name", COMMIT)
    assert f"hf download org/name --revision {COMMIT} --local-dir trained\n" in pinned
    assert pinned_revision(pinned) == COMMIT


@pytest.mark.parametrize("name", ["lisa-7b-v1", "gsva-7b-pt"])
def test_the_card_of_trained_tensors_names_the_base(name):
    (line,) = re.findall(
        r"^Get the base \((.*)\), then put", render_card(name[:4], name, form="trained"), re.MULTILINE
    )
    assert line.split(", ") == [
        "liuhaotian/LLaVA-Lightning-7B-delta-v1-1",
        "openai/clip-vit-large-patch14",
        "facebook/sam-vit-huge",
    ]


def test_numbers_are_in_the_model_index_with_their_source():
    text = render_card("gsva", "gsva-7b-ft-gres")
    results = ModelCard(text).data.eval_results
    assert len(results) == 12
    values = {(result.dataset_split, result.metric_name): result.metric_value for result in results}
    assert values["val", "gIoU"] == 0.6643
    assert values["testB", "N-acc"] == 0.6072
    assert all("618dc7957cd239442d1ecd45c8d575cf91b9ca8e" in result.source_url for result in results)
    assert all("original weights" in result.metric_args["measured_on"] for result in results)
    assert "not measured again on the converted weights" in " ".join(text.split())
    without = render_card("gsva", "gsva-13b-pt")
    assert ModelCard(without).data.eval_results is None
    assert "No score was measured on the converted weights." in without


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_llama_1_bases_may_not_be_published_whole(name):
    permission = publishing_permission(read_card_values(name))
    llama_1 = name.startswith(("lisa-7b", "gsva-7b", "gsva-13b"))
    for_research = name in ("sa2va-qwen2_5-vl-3b", "sa2va-4b")
    assert permission.allowed != (llama_1 or for_research)
    assert ("Qwen Research Licence" in permission.reason) == for_research
    assert ("LLaMA 1's licence" in permission.reason) == llama_1


def test_what_is_unknown_may_not_be_published_whole():
    permission = publishing_permission(read_card_values("lisa-unheard-of", "lisa"))
    assert not permission.allowed
    assert "unknown" in permission.reason
    assert not publishing_permission({}).allowed


@pytest.mark.parametrize("name", [*sorted(PUBLISHED), OWN])
def test_a_trained_model_s_card_keeps_the_chain_and_says_what_was_done(name):
    system = system_of(name)
    base, text = read_card_values(name), render_card(system, name, CONFIG, trainings=[TRAINING, TRAINING])
    card = ModelCard(text, ignore_metadata_errors=False)
    assert publishing_permission(read_card_values(card_values(text))) == publishing_permission(base)
    assert card.data.license == base["license"]
    assert card.data.eval_results is None, "the base's scores are none of these weights"
    for row in [*base["chain"], {"part": "data", "work": "my photographs", "licence": "mine"}]:
        assert text.count(f"| {row['part']} | {row['work']} | {row['licence']} |\n") == 1
    assert "Trained with reasonseg from org/lisa" in text
    assert "Nothing was trained" not in text
    recipes = re.findall(r"```yaml\n(.*?)\n```", text, re.DOTALL)
    assert [yaml.safe_load(recipe) for recipe in recipes] == [TRAINING["recipe"]] * 2
    assert card_trainings(text) == [TRAINING, TRAINING]
    assert not re.search(r"{{|{%|\n\n\n|[ \t]\n|None|Undefined", text)
    assert pinned_repository(text) is None
    assert pinned_repository(pin_card(text, "org/name", COMMIT)) == "org/name"


def test_the_tabletop_model_is_free(tmp_path):
    values = read_card_values(OWN)
    assert publishing_permission(values).allowed
    assert {row["licence"] for row in values["chain"]} == {"Apache-2.0"}, (
        "none of GSVA's own weights and data are in it"
    )
    assert not re.search(r"\n\n\n|Converted from", render_card("gsva", OWN))


@pytest.mark.parametrize(
    "readme",
    [
        "",
        "no metadata",
        "---\n- a list\n---\n",
        "---\na: [\n---\n",
        "---\nreasonseg_card: /etc/own.yaml\n---\n",
        "---\nreasonseg_card: [1]\nreasonseg_values: text\nreasonseg_trainings: {base: x}\n---\n",
        "---\nreasonseg_trainings: [1, {base: x}]\n---\n",
    ],
)
def test_a_card_that_does_not_say_what_it_was_made_with(readme):
    """Whatever stands there: it names no file to read, and no training that `render_card` cannot show."""
    assert card_values(readme) is None
    assert card_trainings(readme) == []


def test_a_card_remembers_the_values_of_a_file(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("title: Mine\nbase: llama-3\n")
    text = render_card("vip_llava", str(own))
    own.unlink()
    assert card_values(text) == {"system": "vip_llava", "title": "Mine", "base": "llama-3"}
    assert render_card("vip_llava", card_values(text)) == text


def test_a_base_of_one_s_own(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "system: reasoning_segmentation\nbase: own\nlicense: apache-2.0\n"
        "chain: [{part: language model, work: Qwen2.5-VL, licence: Apache-2.0}]\n"
    )
    permission = publishing_permission(read_card_values(str(own)))
    assert not permission.allowed
    assert "full_weights: allowed" in permission.reason
    own.write_text(own.read_text() + "full_weights: allowed\n")
    values = read_card_values(str(own))
    assert publishing_permission(values).allowed
    assert [row["part"] for row in values["chain"]] == ["code of this repository", "language model"]


def test_own_values_files(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("system: lisa\ntitle: Mine\nbase: llama-2\nchain: [{part: data, work: photos, licence: mine}]\n")
    values = read_card_values(str(own))
    assert publishing_permission(values).allowed
    assert values["chain"][-1]["work"] == "photos"
    for text, message in [
        ("title: x\n", "need `system:`"),
        ("system: lisa\nbase: gpt\n", "name the base 'gpt'.*llama-2"),
        ("system: sam\n", "need `system:`"),
        ("system: lisa\nbse: llama-2\n", "Unknown fields bse.*Known are .*base"),
        ("system: lisa\nfull_weights: yes\n", "`full_weights` is True.*allowed, forbidden"),
        ("system: lisa\nchain: {part: data}\n", "`chain` is not a list of rows.*part: data"),
        ("system: lisa\nchain: [{part: data, work: x}]\n", "`chain` is not a list of rows"),
        ("- 1\n", "not a mapping"),
        ("a: [", "cannot be read"),
    ]:
        own.write_text(text)
        with pytest.raises(ConversionError, match=message):
            read_card_values(str(own))
    with pytest.raises(ConversionError, match="cannot be read"):
        read_card_values(str(tmp_path / "absent.yaml"))


def test_names_are_checked():
    with pytest.raises(ConversionError, match=r"no card for 'lisa-8b'.*lisa-7b-v1"):
        check_card("lisa", "lisa-8b")
    with pytest.raises(ConversionError, match="no card for 'gsva-7b-pt'"):
        check_card("lisa", "gsva-7b-pt")
    with pytest.raises(ConversionError, match=r"no card for 'any'.*values file of your own"):
        check_card("attend_and_segment", "any")
    check_card("attend_and_segment", "own.yaml")  # read where its values are used
    with pytest.raises(ConversionError, match="no card for 'nothing'"):
        read_card_values("nothing")


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def _full(*arguments):
    raise OSError("disk full")


def test_the_command_writes_cards(lisa_repo, tmp_path, monkeypatch):
    assert run("card", "--list").stdout.split() == known_cards()
    assert run("card", "ivm-v1.0").stdout == render_card("ivm", "ivm-v1.0")
    out = tmp_path / "README.md"
    run("card", "lisa-7b-v1", "--repo", lisa_repo, "--out", out)
    text = out.read_text()
    assert re.search(r"\| language model \| \d+ layers of \d+, 404 tokens, float32 \|", text)
    monkeypatch.setattr(Path, "replace", _full)
    with pytest.raises(OSError, match="disk full"):
        CliRunner().invoke(app, ["--debug", "card", "ivm-v1.0", "--out", str(out)], catch_exceptions=False)
    assert out.read_text() == text, "a stop leaves the card that was there"
    assert "no card for 'lisa-8b'" in " ".join(run("card", "lisa-8b", code=1).stderr.split())
    assert "Pass its name" in run("card", code=1).stderr
    assert "Pass its name" in run("card", "--repo", lisa_repo, code=1).stderr
    assert "no config.json" in run("card", "lisa-7b-v1", "--repo", tmp_path, code=1).stderr
    said = " ".join(run("card", "gsva-7b-pt", "--repo", lisa_repo, code=1).stderr.split())
    assert "holds a model of the type 'lisa', and the card is one of gsva" in said


def test_the_command_keeps_card_and_manifest_together(lisa_repo, tmp_path):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    (repo / "README.md").write_text(render_card("lisa", "lisa-7b-v1", trainings=[TRAINING]))
    update_manifest(repo, ["README.md"])
    run("card", "--repo", repo, "--out", repo / "README.md")
    assert verify_repository(repo).ok
    text = (repo / "README.md").read_text()
    assert card_trainings(text) == [TRAINING]
    assert "404 tokens" in text
    before = (repo / "manifest.json").read_bytes()
    run("card", "lisa-13b-llama2-v1", "--repo", repo, "--out", tmp_path / "elsewhere.md")
    assert (repo / "manifest.json").read_bytes() == before


def test_a_text_without_metadata_is_no_reason_to_warn(caplog, recwarn):
    assert card_values("# A title") is None
    assert not caplog.records
    assert not recwarn.list
