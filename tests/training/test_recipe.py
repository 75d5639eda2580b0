"""Recipes: those of the package can be read, wrong ones are refused with a reason."""

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from reasonseg.training.recipe import (
    RECIPES,
    DataRecipe,
    RecipeError,
    describe_recipe,
    load_recipe,
    require_model,
)
from reasonseg.training.run import run_recipe
from reasonseg.training.trained_parameters import add_lora, select_trained
from tests.modeling.test_families import qwen_inputs
from tests.support import tiny


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes_of_the_package(name):
    recipe = load_recipe(name)
    assert recipe.arguments.get("max_steps") or recipe.arguments["num_train_epochs"]


def test_published_settings():
    recipe = load_recipe("lisa", ["data.path=elsewhere", "arguments.max_steps=7"])
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.arguments["learning_rate"]) == (8, 16, 3e-4)
    assert recipe.data.path == "elsewhere"
    assert recipe.arguments["max_steps"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: x\ndata: {kind: image_folder}", "data.path is missing"),
        ("model: x\ndata: {kind: video}", "must be one of tabletop, image_folder, lisa_mixture, ivm_mix, regions"),
        ("model: x\ndata: {kind: tabletop}\nlearning: 3", r"unknown fields \['learning'\]"),
        ("model: x\ndata: {kind: tabletop, size: 3}", r"data has unknown fields \['size'\]"),
        ("data: {kind: tabletop}", "is incomplete: .*model"),
        ("model: x\ndata: {kind: tabletop}\nlora: {r: 8}", "name in `trained` what learns"),
        ("model: x\ndata: {kind: tabletop}\ntowers: {steps: 3}", "needs `model: tabletop`"),
        ("model: x\ndata: {kind: tabletop}\nguidance: {layer: 2, landmark_layer: 1}", "what every patch shows; only"),
        ("model: x\ndata: {kind: lisa_mixture}", "name the data root"),
        (
            "model: x\ndata: {kind: lisa_mixture, path: d, options: {system: ivm}}",
            "data.options.system is 'ivm'; it must be one of lisa, gsva",
        ),
        ("model: x\ndata: {kind: tabletop}\nvalidation: {dataset: d, every: 0}", "every is 0; it must be a number of"),
        (
            "model: x\ndata: {kind: tabletop}\nvalidation: {dataset: d}\narguments: {save_steps: 3}",
            "arguments.save_steps does not go with `validation`",
        ),
        (
            "model: x\ndata: {kind: tabletop}\noptimizer: {learning_rate: fast}",
            "learning_rate is 'fast'; it must be a num",
        ),
        (
            "model: x\ndata: {kind: tabletop}\nlearning_rates: {head: '1'}",
            "learning_rates.head is '1'; it must be a num",
        ),
        ("model: [x", "is not YAML"),
        ("- a\n- b", "must hold named fields"),
    ],
)
def test_wrong_recipes(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_numbers_with_an_exponent_need_no_point(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: '1e5'\ndata: {kind: tabletop}\noptimizer: {learning_rate: 3e-3}\narguments: {learning_rate: 1E+2}",
        encoding="utf-8",
    )
    recipe = load_recipe(path, ["arguments.weight_decay=-5e-4", "learning_rates.head=.5e1", "optimizer=null"])
    assert recipe.model == "1e5"
    assert recipe.arguments == {"learning_rate": 100.0, "weight_decay": -0.0005}
    assert recipe.learning_rates == {"head": 5.0}
    assert load_recipe(path).optimizer.learning_rate == 0.003
    assert yaml.safe_load("3e-3") == "3e-3", "other readers of YAML are left alone"


def test_a_recipe_that_leaves_the_model_open_cannot_be_followed(tmp_path):
    recipe = load_recipe("lisa_image_folder")
    with pytest.raises(RecipeError, match="--set model="):
        run_recipe(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert require_model(load_recipe("lisa_image_folder", ["model=org/lisa"])) == "org/lisa"


def test_what_a_recipe_sets_is_described_without_the_places(tmp_path):
    recipe = load_recipe("ivm", ["model=org/ivm"])
    described = describe_recipe(recipe)
    assert described["model"] == "org/ivm"
    assert described["dwsl"] == {"steps": 5000}, "what equals its default is left out"
    assert described["arguments"] == recipe.arguments
    assert yaml.safe_load(yaml.safe_dump(described)) == described
    assert recipe.kind.names(recipe.data) == "HumanLabelData.jsonl, RobotMachineData.jsonl, VQAMachineData.jsonl"
    data = tmp_path / "secret" / "photographs"
    data.mkdir(parents=True)
    recipe = load_recipe("lisa_image_folder", [f"model={tmp_path / 'secret'}", f"data.path={data}"])
    assert describe_recipe(recipe)["model"] == "secret"
    assert str(tmp_path) not in str(describe_recipe(recipe))
    assert recipe.kind.names(recipe.data) == "photographs"
    tabletop = load_recipe("tabletop")
    assert tabletop.kind.names(tabletop.data) == "tabletops drawn by reasonseg"


def test_unknown_recipe():
    with pytest.raises(
        RecipeError,
        match="no recipe 'sam'; recipes: difflmm_finetune, difflmm_pretrain, gsva, gsva_image_folder, ivm, lisa",
    ):
        load_recipe("sam")


def test_wrong_override():
    with pytest.raises(RecipeError, match="write key=value"):
        load_recipe("tabletop", ["seed"])
    for seed in (-1, 2**32):
        with pytest.raises(RecipeError, match=rf"seed is {seed}; it must be from 0 to 4294967295"):
            load_recipe("tabletop", [f"seed={seed}"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_tabletop_recipe_from_scratch_and_resumed(tmp_path):
    """Both stages, a complete repo at the end, and no run over another one."""
    small = ["towers.steps=1", "towers.batch_size=2", "score_steps=8", "arguments.per_device_train_batch_size=2"]
    steps = [*small, "arguments.max_steps=2", "arguments.save_steps=1", "arguments.disable_tqdm=true"]
    precision = torch.get_float32_matmul_precision()
    run_recipe(load_recipe("tabletop", steps), tmp_path / "out")
    assert torch.get_float32_matmul_precision() == precision, "the rest of the process must compute as before"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path / "out", dtype="auto").parameters()} == {torch.float32}
    assert not list((tmp_path / "out").glob("*.bin")), "no pickles in a repository"
    assert (tmp_path / "out" / "checkpoint-2").is_dir()
    with pytest.raises(RecipeError, match="holds checkpoint-2 of an earlier run; pass --resume"):
        run_recipe(load_recipe("tabletop", steps), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"no checkpoint in .* to resume from"):
        run_recipe(load_recipe("tabletop", steps), tmp_path / "empty", resume=True)
    longer = [*small, "arguments.max_steps=3", "arguments.save_steps=1", "arguments.disable_tqdm=true"]
    run_recipe(load_recipe("tabletop", longer), tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "checkpoint-3").is_dir()


def test_a_model_and_data_of_ones_own_take_the_place_of_the_originals(tmp_path):
    """What a recipe from parts on the originals' data has beside its settings is left out."""
    (tmp_path / "metadata.jsonl").touch()
    recipe = load_recipe("lisa", ["model=org/lisa", f"data.path={tmp_path}"])
    assert (recipe.model, recipe.parts, recipe.validation) == ("org/lisa", None, None)
    assert recipe.data == DataRecipe(kind="image_folder", path=str(tmp_path))
    recipe = load_recipe("lisa", ["data.path=data"])
    assert recipe.parts["system"] == "lisa"
    assert (recipe.data.kind, recipe.validation.dataset) == ("lisa_mixture", "reasonseg")


def test_sa2vas_settings_fit_its_model():
    recipe = load_recipe("sa2va_image_folder", ["model=x"])
    model = tiny.sa2va_model().train()
    add_lora(model, 2, recipe.lora.lora_alpha, recipe.lora.lora_dropout, recipe.lora.targets)
    select_trained(model, recipe.trained)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert len(adapted) == 7 * tiny.TEXT["num_hidden_layers"]
    assert all(name.startswith("vlm.model.language_model.layers.") for name in adapted)
    vlm_inputs, image_tokens = qwen_inputs(1)
    batch = tiny.with_answers(tiny.prompts([6], image_tokens=image_tokens), [[tiny.SEG, 7, tiny.EOS]])
    views = tiny.images(1)
    output = model(
        **batch,
        **{**views, **vlm_inputs},
        mm_token_type_ids=(batch["input_ids"] == tiny.IMAGE).long(),
        labels=batch["input_ids"],
        mask_labels=[torch.ones(1, *views["original_sizes"][0].tolist())],
    )
    output.loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, value in model.named_parameters() if value.requires_grad} - learned <= {
        name for name in dict(model.named_parameters()) if "iou_prediction_head" in name or "pred_obj_score" in name
    }
    assert not any(name.startswith(("segmenter.vision_encoder", "vlm.model.visual")) for name in learned)
