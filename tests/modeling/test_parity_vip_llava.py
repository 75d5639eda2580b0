"""Converted ViP-LLaVA checkpoints compute what the original code recorded."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.recorded_vip_llava import (
    CASES,
    IMAGE_PLACE,
    PHI_3_META,
    phi_3_tensors,
    recorded_image,
    recorded_pixels,
    tensors,
    with_expanded_image,
)


QUESTIONS = list(dict.fromkeys(case["question"] for case in CASES.values()))


@pytest.fixture(scope="module")
def model(vip_llava_repo):
    return AutoModelForImageTextToText.from_pretrained(vip_llava_repo).eval()


@pytest.fixture(scope="module")
def processor(vip_llava_repo):
    return AutoProcessor.from_pretrained(vip_llava_repo)


@pytest.fixture(scope="module")
def phi_3(vip_llava_phi_3_repo):
    model = AutoModelForImageTextToText.from_pretrained(vip_llava_phi_3_repo).eval()
    return model, AutoProcessor.from_pretrained(vip_llava_phi_3_repo)


def close(found, expected, atol):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def recorded(name, values):
    """The recording of `name` with the positions of `values` that it keeps."""
    if f"{name}_every4th" in tensors():
        return tensors()[f"{name}_every4th"], values[::4]
    return tensors()[name], values


@pytest.mark.parametrize("image", [0, 1])
@torch.no_grad()
def test_features_of_several_layers(model, image):
    found = {}
    projector = model.model.multi_modal_projector
    hooks = [
        projector.register_forward_pre_hook(lambda _, args: found.update(multilayer_features=args[0][0])),
        projector.projector_layernorm.register_forward_hook(
            lambda _, args, output: found.update(projector_layernorm=output[0])
        ),
        projector.linear_1.register_forward_hook(lambda _, args, output: found.update(projector_linear_0=output[0])),
    ]
    pixel_values = recorded_pixels(image, "pad")[1][None]
    features = model.get_image_features(pixel_values)
    for hook in hooks:
        hook.remove()
    found["projector_output"] = features.pooler_output[0]
    # The order of the layers shows, too: every state is another one.
    states = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
    found["clip_hidden_states_cls_and_first4"] = torch.stack([state[0, :5] for state in states])
    for name, values in found.items():
        expected, values = recorded(f"image{image}.{name}", values)
        close(values, expected, 2e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_and_greedy_answer(model, processor, name):
    case = CASES[name]
    inputs = processor(recorded_image(case["image"]), case["question"], return_tensors="pt")
    ids = tensors()[f"{name}.input_ids"]
    assert inputs["input_ids"][0].tolist() == with_expanded_image(ids, processor.image_token_id)
    logits = model(**inputs).logits[0, :, :-1]  # the last token, <image>, is new
    expected, logits = recorded(f"{name}.logits", logits)
    close(logits, expected, 1e-4)

    written = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    # the original's sequence begins with a BOS that it did not write
    assert [1, *written.tolist()] == tensors()[f"{name}.generated_ids"].tolist()


@torch.no_grad()
def test_embeddings_with_the_image_in_place(model, processor):
    case = CASES["case_00"]
    inputs = processor(recorded_image(case["image"]), case["question"], return_tensors="pt")
    found = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: found.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    close(found["inputs_embeds"][0], tensors()["case_00.inputs_embeds"], 2e-5)


@torch.no_grad()
def test_a_batch_with_labels(model, processor):
    """The answers are the prompts' next tokens of no meaning, so ids and labels are taken as recorded."""
    record = tensors()
    ids = [with_expanded_image(row, processor.image_token_id) for row in record["batch.input_ids"]]
    labels = [
        with_expanded_image(torch.where(row == IMAGE_PLACE, row, labels), 0, filler=-100)
        for row, labels in zip(record["batch.input_ids"], record["batch.labels"], strict=True)
    ]
    mask = record["batch.new_attention_mask"].long()
    assert labels == record["batch.new_labels"].tolist()
    pixel_values = torch.stack([recorded_pixels(index, "pad")[1] for index in (0, 1)])
    output = model(
        input_ids=torch.tensor(ids), attention_mask=mask, labels=torch.tensor(labels), pixel_values=pixel_values
    )
    close(output.loss, record["batch.loss"], 1e-5)
    kept = mask[:, ::4].bool()  # what padding computes is nobody's business
    close(output.logits[:, ::4, :-1][kept], record["batch.logits_every4th"][kept], 1e-4)


@torch.no_grad()
def test_without_a_image(model, processor):
    ids = tensors()["text_only.input_ids"]
    inputs = processor(text=processor.tokenizer.decode(ids[1:]), apply_template=False, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ids.tolist()
    close(model(**inputs).logits[0, :, :-1], tensors()["text_only.logits"], 1e-4)


@pytest.mark.parametrize("case", [0, 1])
@torch.no_grad()
def test_on_phi_3(phi_3, case):
    model, processor = phi_3
    record, meta = phi_3_tensors(), PHI_3_META["cases"][case]
    inputs = processor(recorded_image(meta["image"]), QUESTIONS[case], return_tensors="pt")
    assert inputs.rows[0].conversation == meta["prompt"]
    assert inputs["input_ids"][0].tolist() == with_expanded_image(
        record[f"case{case}.input_ids"], processor.image_token_id
    )
    close(model(**inputs).logits[0, ::3, :-1], record[f"case{case}.logits_every3rd"], 1e-4)
    written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert [1, *written.tolist()] == record[f"case{case}.generated_ids"].tolist()


@torch.no_grad()
def test_left_padded_rows_answer_as_alone(model, processor):
    cases = [CASES[name] for name in ("case_00", "case_11")]
    inputs = processor(
        [recorded_image(case["image"]) for case in cases], [case["question"] for case in cases], return_tensors="pt"
    )
    written = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for case, row in zip(cases, written.tolist(), strict=True):
        assert [1, *row] == tensors()[f"{case['name']}.generated_ids"].tolist()
