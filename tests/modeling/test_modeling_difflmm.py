"""
DiffLMM as a model of transformers: text and images in, text out, saved and loaded, trained, and bad input; and the
UNet's features: cut off where they are taken, repeatable, and the same beside other images.
"""

import importlib.util
import json
import re
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPTextConfig

from reasonseg.modeling.configuration_difflmm import DiffLmmConfig
from reasonseg.modeling.modeling_difflmm import (
    DiffLmmForConditionalGeneration,
    check_noise,
    diffusers_classes,
    draw_noise,
)
from reasonseg.serving.streaming import CachingVlm
from reasonseg.training.trained_parameters import select_trained
from tests.support.counting import counted as counted_tokens
from tests.support.tiny import IMAGE, difflmm_config, difflmm_model, prompts, randomize


needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="DiffLMM needs diffusers; `pip install .[dev]` has it."
)


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(len(lengths), 3, 16, 16, generator=generator)
    return prompts(lengths, image_tokens=16) | {"pixel_values": pixel_values}


def row(inputs: dict[str, torch.Tensor], place: int) -> dict[str, torch.Tensor]:
    kept = inputs["attention_mask"][place].bool()
    return {
        "input_ids": inputs["input_ids"][place : place + 1, kept],
        "attention_mask": inputs["attention_mask"][place : place + 1, kept],
        "pixel_values": inputs["pixel_values"][place : place + 1],
    }


@needs_diffusers
@torch.inference_mode()
def test_padded_rows_answer_as_they_do_alone():
    model, inputs = difflmm_model(), batch([4, 9, 6])
    logits = model(**inputs).logits[:, -1]
    answers = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    for place in range(3):
        alone = row(inputs, place)
        assert (model(**alone).logits[0, -1] - logits[place]).abs().max() < 1e-4
        answer = model.generate(**alone, max_new_tokens=5, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert answer.tolist() == answers[place, : len(answer)].tolist()


@needs_diffusers
@torch.inference_mode()
def test_a_prompt_goes_on_from_what_was_read():
    model, inputs = difflmm_model(), batch([7])
    caching = CachingVlm(model)
    cache = caching.encode_image(**inputs)
    answer = caching.generate(**inputs, image_cache=cache, max_new_tokens=5)
    assert torch.equal(answer, model.generate(**inputs, max_new_tokens=5))
    further = {"input_ids": torch.cat([answer, answer.new_tensor([[7, 9]])], 1)}
    further["attention_mask"] = torch.ones_like(further["input_ids"])
    expected = model.generate(**further, pixel_values=inputs["pixel_values"], max_new_tokens=5)
    with counted_tokens(model) as counts:
        assert torch.equal(caching.generate(**further, image_cache=cache, max_new_tokens=5), expected)
    assert counts["vlm"] == 0
    assert max(counts["tokens"]) < 5


@needs_diffusers
def test_the_placeholder_has_no_share_of_the_loss():
    """The original has no such token: its loss is over the other words alone."""
    model, inputs = difflmm_model(), batch([6, 9])
    words = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    output = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100))
    assert (output.logits[..., IMAGE] == torch.finfo(output.logits.dtype).min).all()
    kept = torch.arange(output.logits.shape[-1]) != IMAGE
    targets = (words - (words > IMAGE).long())[:, 1:]  # ids behind the placeholder move up
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1, kept].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert not model.lm_head.weight.grad[IMAGE].any()
    assert model.lm_head.weight.grad.any()
    last = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(last, output.logits[:, -1:])


@needs_diffusers
@torch.inference_mode()
def test_images_and_their_noise_matter():
    model, inputs = difflmm_model(), batch([6])
    logits = model(**inputs).logits
    assert not torch.allclose(model(**inputs | {"pixel_values": -inputs["pixel_values"]}).logits, logits)
    assert not torch.allclose(model(**inputs, noise_seed=7).logits, logits)
    encoded = model.get_image_features(inputs["pixel_values"], noise_seed=7)
    without = {name: value for name, value in inputs.items() if name != "pixel_values"}
    assert torch.equal(
        model(**without, mm_encoder_outputs={"image": encoded}).logits, model(**inputs, noise_seed=7).logits
    )


@needs_diffusers
@torch.inference_mode()
def test_generation_takes_noise_also_with_beams_and_several_answers():
    model, inputs = difflmm_model(), batch([4, 6])
    shape = (2, *model.config.latent_shape)
    noise = {"vae_noise": torch.randn(shape), "latent_noise": torch.randn(shape)}
    beams = model.generate(**inputs, **noise, max_new_tokens=4, num_beams=3)
    assert len(beams) == 2
    sampled = model.generate(
        **inputs,
        generator=torch.Generator().manual_seed(0),
        max_new_tokens=4,
        num_beams=2,
        num_return_sequences=2,
    )
    assert len(sampled) == 4
    assert torch.equal(beams, model.generate(**inputs, **noise, max_new_tokens=4, num_beams=3))


@needs_diffusers
def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, inputs = difflmm_model(ensemble_size=2, noise_seed=3), batch([5])
    model.save_pretrained(tmp_path)
    loaded, report = DiffLmmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.noise_seed == 3
    assert loaded.config.unet_config == model.config.unet_config
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.inference_mode():
        logits = half(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@needs_diffusers
def test_everything_learns():
    model, inputs = difflmm_model(), batch([6, 6])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    model.train()
    model(**inputs, labels=labels).loss.backward()
    # The tower's last layer and last norm come behind the hidden state that is read.
    unread = ("vision_tower.encoder.layers.2.", "vision_tower.post_layernorm.")
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert [name for name in idle if not name.startswith(tuple(f"model.{part}" for part in unread))] == []


@needs_diffusers
def test_activation_checkpointing_changes_nothing():
    model, inputs = difflmm_model().train(), batch([6])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            assert model.model.diffusion.unet.mid_block.gradient_checkpointing
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"], noise_seed=0).loss.backward()
        gradients.append(model.model.implicit_captioner.clip_projector[0].weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].abs().max() > 0


@needs_diffusers
@torch.inference_mode()
def test_the_empty_prompt_in_place_of_the_implicit_caption():
    text = CLIPTextConfig(
        vocab_size=20,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = difflmm_model(implicit_caption=False, prompt_config=text, empty_prompt_ids=[0, 1, 1, 1, 1, 1])
    assert model.model.implicit_captioner is None
    features = model.get_image_features(batch([5, 5])["pixel_values"])
    embeds = model.model.prompt_embeds(features.clip_features)
    assert embeds.shape == (2, 6, 12)
    assert torch.equal(embeds[0], embeds[1])
    with pytest.raises(ValueError, match="needs `prompt_config` and `empty_prompt_ids`"):
        difflmm_config(implicit_caption=False, prompt_config=text)


@needs_diffusers
@torch.inference_mode()
def test_the_views_of_both_towers():
    model = difflmm_model()
    grey = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    pixel_values = ((0.5 - grey) / std).expand(1, 3, 16, 16)  # an image of medium grey
    clip_view, diffusion_view = model.model.two_views(pixel_values)
    assert clip_view.shape == (1, 3, 8, 8)
    assert torch.equal(diffusion_view, pixel_values)
    assert torch.allclose(clip_view, ((pixel_values * 0.5 + 0.5 - grey) / std)[..., :8, :8], atol=1e-6)
    model.config.normalize_twice = False
    clip_view, diffusion_view = model.model.two_views(pixel_values)
    assert torch.allclose(clip_view, pixel_values[..., :8, :8], atol=1e-6)
    assert diffusion_view.abs().max() < 1e-6  # medium grey in -1..1


def test_the_default_is_the_published_model():
    config = DiffLmmConfig()
    assert (config.image_token_grid, config.image_seq_length, config.patch_size) == ((24, 24), 576, 16)
    assert config.diffusion_channels == 1280
    assert config.latent_shape == (4, 48, 48)
    text = config.text_config
    assert (text.hidden_size, text.vocab_size, text.rms_norm_eps) == (4096, 32001, 1e-5)
    assert (text.max_position_embeddings, text.pad_token_id, config.image_token_id) == (4096, 0, 32000)
    assert config.to_dict()["auto_map"]["AutoConfig"] == "configuration_difflmm.DiffLmmConfig"
    for saved in (config.to_dict(), json.loads(config.to_json_string())):
        assert DiffLmmConfig.from_dict(saved).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diffusion_block": 3}, "diffusion_block is 3; allowed is 0 to 2: the UNet has 3 up blocks"),
        ({"timestep": 1000}, "timestep is 1000; allowed is 0 to 999"),
        ({"ensemble_size": 0}, "ensemble_size is 0; allowed is 1 or more"),
        ({"image_size": 20}, "image_size is 20; this VAE and UNet take multiples of 8 pixels"),
        ({"image_size": 24}, r"gives \(6, 6\) features for 24 pixels and CLIP \(4, 4\) for 8"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        difflmm_config(**fields)


@needs_diffusers
def test_inputs_that_do_not_fit_are_refused():
    model, inputs = difflmm_model(), batch([5])
    image = inputs["pixel_values"]
    noise = torch.zeros(1, *model.config.latent_shape)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 16, 24\); this model takes \(num_images, 3, 16, 16\)"):
        model.get_image_features(torch.zeros(1, 3, 16, 24))
    with pytest.raises(ValueError, match="latent_noise was given without vae_noise"):
        model.get_image_features(image, latent_noise=noise)
    with pytest.raises(ValueError, match="both as tensors and as a seed or generator"):
        model.get_image_features(image, latent_noise=noise, vae_noise=noise, noise_seed=1)
    with pytest.raises(ValueError, match="hold 16 image tokens and the images give 32: every image needs 16"):
        model(**inputs | {"pixel_values": image.repeat(2, 1, 1, 1)})
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(**inputs, noise=noise, max_new_tokens=1)


@needs_diffusers
def test_weights_are_initialised_on_the_meta_device():
    with torch.device("meta"):
        model = DiffLmmForConditionalGeneration(difflmm_config())
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    on_cpu = randomize(model.to_empty(device="cpu"))
    with torch.inference_mode():
        assert on_cpu.model.diffusion.add_noise(torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)).device.type == "cpu"


# ---- the features of the UNet ---------------------------------------------------------------------------------------


def random_images(count: int, side: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    config = difflmm_config()  # reading a config must still work
    with pytest.raises(ImportError, match=r"pip install diffusers\.$"):
        DiffLmmForConditionalGeneration(config)


@needs_diffusers
@torch.inference_mode()
@pytest.mark.parametrize("block", [0, 1, 2])
def test_the_cut_unet_gives_what_a_hook_reads_off_the_whole_one(block):
    config = difflmm_config(diffusion_block=block, concat_clip=False)
    cut = DiffLmmForConditionalGeneration(config).model.diffusion.eval()
    whole = randomize(diffusers_classes()[0].from_config(config.unet_config))
    cut.unet.load_state_dict(whole.state_dict(), strict=False)
    caught = []
    hook = whole.up_blocks[block].register_forward_hook(lambda module, args, output: caught.append(output))
    latents, prompt = torch.randn(2, *config.latent_shape), torch.randn(2, 5, 12)
    whole(latents, config.timestep, encoder_hidden_states=prompt)
    hook.remove()
    found = cut.unet(latents, config.timestep, encoder_hidden_states=prompt, return_dict=False)[0]
    assert torch.equal(found, caught[0])
    assert found.shape[1:] == (config.diffusion_channels, *config.image_token_grid)
    names = cut.state_dict()
    assert not any(name.startswith(("vae.decoder", "unet.conv_out", f"unet.up_blocks.{block + 1}")) for name in names)


@needs_diffusers
@torch.inference_mode()
def test_results_repeat_and_do_not_depend_on_the_batch():
    model, images = difflmm_model(), random_images(3)
    batch = model.get_image_features(images)
    again = model.get_image_features(images)
    for place in range(3):
        assert torch.equal(batch.pooler_output[place], again.pooler_output[place])
        single = model.get_image_features(images[place : place + 1])
        assert (single.pooler_output[0] - batch.pooler_output[place]).abs().max() < 1e-5
    other = model.get_image_features(images, noise_seed=1)
    assert (other.pooler_output[0] - batch.pooler_output[0]).abs().max() > 1e-3
    same = model.get_image_features(images, noise_seed=model.config.noise_seed)
    assert torch.equal(same.pooler_output[0], batch.pooler_output[0])


@needs_diffusers
@torch.inference_mode()
def test_a_generator_draws_on():
    model, image = difflmm_model(), random_images(1)
    generator = torch.Generator().manual_seed(5)
    first, second = (model.get_image_features(image, generator=generator).pooler_output[0] for _ in range(2))
    assert not torch.allclose(first, second)
    fresh = model.get_image_features(image, generator=torch.Generator().manual_seed(5)).pooler_output[0]
    assert torch.equal(fresh, first)
    # One image's noise of a seed is what a generator of that seed draws first.
    assert torch.equal(model.get_image_features(image, noise_seed=5).pooler_output[0], first)


@needs_diffusers
@torch.inference_mode()
def test_an_ensemble_is_the_mean_of_its_members():
    members, images = 3, random_images(2)
    model = difflmm_model(ensemble_size=members)
    alone = difflmm_model(ensemble_size=1)
    alone.load_state_dict(model.state_dict())
    vae_noise, latent_noise = draw_noise(model.config, 2, generator=torch.Generator().manual_seed(0))
    assert vae_noise.shape == (6, *model.config.latent_shape)
    together = model.get_image_features(images, vae_noise=vae_noise, latent_noise=latent_noise).diffusion_features
    each = [
        alone.get_image_features(images, vae_noise=first, latent_noise=second).diffusion_features
        for first, second in zip(vae_noise.split(2), latent_noise.split(2), strict=True)
    ]
    assert (together - torch.stack(each).mean(0)).abs().max() < 1e-4
    assert (each[0] - each[1]).abs().max() > 1e-2


def test_noise_of_a_seed_is_the_same_for_every_image():
    config = difflmm_config(ensemble_size=2)
    vae_noise, latent_noise = draw_noise(config, 3)
    assert vae_noise.shape == latent_noise.shape == (6, *config.latent_shape)
    assert not torch.equal(vae_noise, latent_noise)
    assert torch.equal(vae_noise[0], vae_noise[2])
    assert not torch.equal(vae_noise[0], vae_noise[3])
    with pytest.raises(ValueError, match="Both `noise_seed` and `generator`"):
        draw_noise(config, 1, seed=0, generator=torch.Generator())


def test_noise_that_does_not_fit_is_refused():
    config = difflmm_config(ensemble_size=2)
    noise = torch.zeros(2, *config.latent_shape)
    check_noise(config, 1, vae_noise=noise, latent_noise=noise)
    with pytest.raises(ValueError, match=r"vae_noise was given without latent_noise"):
        check_noise(config, 1, vae_noise=noise, latent_noise=None)
    with pytest.raises(
        ValueError, match=r"latent_noise has the shape \(1, 4, 8, 8\); 1 images .* need \(2, 4, 8, 8\)"
    ):
        check_noise(config, 1, vae_noise=noise, latent_noise=noise[:1])


# ---- training -------------------------------------------------------------------------------------------------------


LEARNS = r"model\.(multi_modal_projector|implicit_captioner)\."


def learning(**fields) -> DiffLmmForConditionalGeneration:
    """As in the first stage: projector and implicit caption learn."""
    model = difflmm_model(**fields).train()
    select_trained(model, [LEARNS])
    return model.train()


def with_labels(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    hidden = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE)
    return inputs | {"labels": inputs["input_ids"].masked_fill(hidden, -100)}


@needs_diffusers
@pytest.mark.parametrize(
    "part", ["clip_pe", "clip_projector.0.weight", "vt_pe", "sd_norm_layer", "sd_proj_layer", "r.linear."]
)
def test_gradients_are_slopes_also_through_the_unet(part):
    """By finite differences in float64, of a sum of image tokens with random weights."""
    model, images = learning().double(), random_images(2)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 16, 32, generator=generator, dtype=torch.float64)

    def total() -> torch.DoubleTensor:
        return (torch.stack(model.get_image_features(images, noise_seed=3).pooler_output) * weights).sum()

    total().backward()
    assert all((value.grad is None) == (not re.match(LEARNS, name)) for name, value in model.named_parameters())
    moved = [value for name, value in model.named_parameters() if part in name]
    along = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in moved]
    slope = sum(float((value.grad * direction).sum()) for value, direction in zip(moved, along, strict=True))
    found = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for value, direction in zip(moved, along, strict=True):
                value += step * direction
            found.append(total().item())
    assert slope != 0
    assert (found[0] - found[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)


@needs_diffusers
def test_the_loss_is_the_mean_over_all_words_of_all_rows():
    model, inputs = learning(), with_labels(batch([5, 9]))
    output = model(**inputs, noise_seed=3)
    expected = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    )
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(
        (value.grad is not None and value.grad.any()) == bool(re.match(LEARNS, name))
        for name, value in model.named_parameters()
    )


@needs_diffusers
def test_frozen_towers_stay_in_evaluation_mode():
    model = difflmm_model()
    model.train()
    assert model.model.diffusion.training  # all of it learns
    select_trained(model, [LEARNS])
    model.train()
    towers = (model.model.vision_tower, model.model.diffusion)
    assert not any(module.training for tower in towers for module in tower.modules())
    assert model.model.multi_modal_projector.training
    assert model.model.language_model.training


@needs_diffusers
def test_training_draws_other_noise_every_time_and_evaluation_the_same():
    model, image = learning(), random_images(1)
    torch.manual_seed(5)
    first, second = (model.get_image_features(image).pooler_output[0] for _ in range(2))
    assert not torch.allclose(first, second)
    torch.manual_seed(5)
    assert torch.equal(model.get_image_features(image).pooler_output[0], first)
    # As the original draws: first for the latents, then for the diffusion, of torch's own generator.
    torch.manual_seed(5)
    noises = [torch.randn(1, *model.config.latent_shape) for _ in range(2)]
    with torch.no_grad():
        drawn = model.get_image_features(image, vae_noise=noises[0], latent_noise=noises[1]).pooler_output[0]
        assert (drawn - first).abs().max() < 1e-5
        model.eval()
        assert torch.equal(*(model.get_image_features(image).pooler_output[0] for _ in range(2)))


@needs_diffusers
def test_text_without_images_gives_everything_that_learns_a_gradient():
    model, inputs = learning(), with_labels(prompts([6, 4], image_tokens=0))
    loss = model(**inputs).loss
    loss.backward()
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, name
            assert not value.grad.any(), name
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).loss, loss)
    select_trained(model, ["lm_head"])
    encoded = counted(model.train())
    model(**inputs)
    assert encoded == []  # nothing that looks learns


def counted(model: DiffLmmForConditionalGeneration) -> list[int]:
    """How many images each call of the UNet sees from now on."""
    seen = []
    model.model.diffusion.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


@needs_diffusers
def test_rows_that_share_an_image_encode_it_once():
    model, inputs = learning(), with_labels(batch([5, 7, 4]))
    images = inputs["pixel_values"]
    encoded = counted(model)
    shared = {**inputs, "pixel_values": images[:2], "image_index": torch.tensor([0, 1, 0])}
    loss = model(**shared, noise_seed=1).loss
    assert encoded == [2]
    each = model(**{**inputs, "pixel_values": images[[0, 1, 0]]}, noise_seed=1).loss
    torch.testing.assert_close(loss, each, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="image_index names the image 2; pixel_values hold 2, counted from 0"):
        model(**{**shared, "image_index": torch.tensor([0, 2, 0])})
    del shared["labels"]
    with pytest.raises(ValueError, match="`generate` takes an image per row"):
        model.generate(**shared, max_new_tokens=2)


@needs_diffusers
def test_mixed_precision_of_the_processor():
    model, inputs = learning(), with_labels(batch([5, 7]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**inputs, noise_seed=1).loss
    loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)
    assert loss.item() == pytest.approx(model(**inputs, noise_seed=1).loss.item(), rel=0.05)
