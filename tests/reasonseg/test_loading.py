"""One module loads checkpoints: it never asks, and looks at the sizes first."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoModel, AutoProcessor, dynamic_module_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from reasonseg.loading import code_stays_off, find_absurd_number, load_pretrained
from reasonseg.model_names import EMBEDDED_MODEL
from tests.support.parity_data import PARITY


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A folder with code that leaves a trace; a question at the terminal would be a failure."""
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "hostile"
    folder.mkdir()
    code = "from transformers import PreTrainedConfig\nclass Evil(PreTrainedConfig):\n    model_type = 'evil'\n"
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n{code}")
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    return folder


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": None}])
def test_code_does_not_run_unless_the_user_says_so(hostile, tmp_path, trust):
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_pretrained(AutoConfig, hostile, **trust)
    assert not (tmp_path / "canary").exists()
    assert load_pretrained(AutoConfig, hostile, trust_remote_code=True).model_type == "evil"
    assert (tmp_path / "canary").exists()


def test_parts_of_a_model_do_not_ask_either(hostile):
    """A part that transformers builds by itself, of a kind it has no model for, and whose config names code."""
    kind = next(kind for kind in CONFIG_MAPPING.values() if kind not in AutoModel._model_mapping)
    config, before = kind(), dynamic_module_utils.TIME_OUT_REMOTE_CODE
    config.auto_map, config._name_or_path = {"AutoModel": "evil.Evil"}, str(hostile)
    with code_stays_off(), pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_config(config)
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE


def test_the_packages_own_models_load_although_they_name_code(lisa_repo, tmp_path):
    """The classes of this package go first; a changed copy of the code is not looked at."""
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    for file in repo.glob("*.py"):
        file.write_text("raise SystemExit('the code of the repository')\n")
    assert type(load_pretrained(AutoModel, repo)).__module__ == "reasonseg.modeling.modeling_lisa"
    assert type(load_pretrained(AutoProcessor, repo)).__module__ == "reasonseg.processing.processing_lisa"


def test_sizes_are_looked_at_before_a_model_is_built(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 10**9}))
    with pytest.raises(ValueError, match="num_hidden_layers=1000000000; a whole number from -1000 to 1000"):
        load_pretrained(AutoModel, tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_hidden_layers": 1001}, "num_hidden_layers=1001"),
        ({"a": {"b": [{"n_layer": -5000}]}}, "a.b.n_layer=-5000"),
        ({"depths": [900, 900]}, "1800 layers as depths"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_attention_heads": [4, 0]}, "num_attention_heads=0"),
        ({"hidden_size": 1 << 40}, "hidden_size="),
        ({"vocab_size": 10**9}, "vocab_size="),
        ({"num_labels": 10**6}, "num_labels="),
        ({"anything": 10**400}, "more than 18 digits"),
        ({"num_hidden_layers": 32, "hidden_size": 4096, "heads": [0, -1], "vision_feature_layer": -2}, None),
        ({"model_max_length": 10**30, "rope_theta": 1e9, "use_cache": True, "eos_token_id": [1, 2]}, None),
        ({"size": {"longest_edge": 12_845_056}, "max_position_embeddings": 10_485_760}, None),
    ],
)
def test_numbers_that_no_model_has(config, named):
    found = find_absurd_number(config)
    assert (named in found) if named else found is None


def test_every_model_of_transformers_and_every_recording_has_numbers_that_pass():
    checked = 0
    for name in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[name]().to_dict()
        except Exception:  # some need a part, or a package that is not installed
            continue
        assert find_absurd_number(config) is None, name
        checked += 1
    assert checked > 300
    for file in [*PARITY.rglob("*config*.json"), *EMBEDDED_MODEL.glob("*.json")]:
        content = json.loads(file.read_text(encoding="utf-8"))
        assert not isinstance(content, dict) or find_absurd_number(content) is None, file
