"""ViP-LLaVA's class beside transformers' own: the placeholder is out of the way, and everything else is the same."""

import inspect

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from reasonseg.modeling.modeling_vip_llava import VipLlavaForConditionalGeneration
from tests.support.tiny_vip_llava import IMAGE_TOKENS, SIDE, write_repo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return VipLlavaForConditionalGeneration.from_pretrained(write_repo(tmp_path_factory.mktemp("parts"))).eval()


@pytest.fixture
def stock(model):
    """Transformers' class with the same weights."""
    stock = transformers.VipLlavaForConditionalGeneration(model.config).eval()
    stock.load_state_dict(model.state_dict())
    return stock


@pytest.fixture
def inputs(model):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 600, (2, 14), generator=generator)
    ids[:, 1 : 1 + IMAGE_TOKENS] = model.config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, SIDE, SIDE, generator=generator)}


@torch.no_grad()
def test_only_the_placeholder_differs(model, stock, inputs):
    found, expected = model(**inputs).logits, stock(**inputs).logits
    place = model.config.image_token_id
    assert (found[..., place] == torch.finfo(found.dtype).min).all()
    kept = torch.arange(found.shape[-1]) != place
    assert torch.equal(found[..., kept], expected[..., kept])
    assert found.softmax(dim=-1)[..., place].max() == 0


def test_the_loss_is_that_of_a_model_without_a_placeholder(model, stock, inputs):
    labels = inputs["input_ids"].clone()  # placeholders included, which are not to be learned
    labels[0, 8:10] = -100
    place = model.config.image_token_id
    logits = stock(**inputs).logits
    kept = torch.arange(logits.shape[-1]) != place
    words = labels.masked_fill(labels == place, -100)
    targets = (words - (words > place).long())[:, 1:]  # ids behind the placeholder move up
    expected = cross_entropy(logits[:, :-1, kept].flatten(0, 1), targets.flatten())
    loss = model(**inputs, labels=labels).loss
    torch.testing.assert_close(loss, expected)
    assert stock(**inputs, labels=words).loss - loss > 1e-4
    loss.backward()
    assert not model.lm_head.weight.grad[place].any()
    assert model.lm_head.weight.grad.any()
    model.zero_grad()


def test_it_takes_what_transformers_class_takes(model, stock, inputs):
    names = [list(inspect.signature(one.forward).parameters) for one in (model, stock)]
    assert names[0] == names[1]
    with torch.no_grad():
        whole = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, whole[:, -1:])
        logits, *_ = model(**inputs, return_dict=False)
        assert torch.equal(logits, whole)
        images = {"image": model.get_image_features(inputs["pixel_values"])}
        given = model(input_ids=inputs["input_ids"], mm_encoder_outputs=images).logits
        torch.testing.assert_close(given, whole)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3, "do_sample": False}])
@torch.no_grad()
def test_generation_is_the_same(model, stock, inputs, options):
    settings = dict(max_new_tokens=8, suppress_tokens=[model.config.image_token_id], **options)
    assert torch.equal(model.generate(**inputs, **settings), stock.generate(**inputs, **settings))


@pytest.mark.parametrize("original_names", [True, False])
def test_each_class_loads_what_the_other_saved(model, stock, inputs, tmp_path, original_names):
    for one, other in ((model, type(stock)), (stock, type(model))):
        folder = tmp_path / type(one).__module__
        one.save_pretrained(folder, save_original_format=original_names)
        loaded, info = other.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        for name, value in one.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
    ours = VipLlavaForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, model(**inputs).logits)
