"""Fast tokenizers give the ids of the slow ones, whatever order the tokens have, and read well backwards."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaTokenizer

from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.tokenizers import build_tokenizer, check_tokenizer_files
from tests.support.parity_data import PARITY, load_meta, load_tensors


LISA = PARITY / "lisa" / "checkpoint"
GSVA_BASE = PARITY / "gsva" / "base_llava"
GSVA_COMPLETE = PARITY / "gsva" / "tokenizer_with_task_tokens"
FOLDERS = [("lisa", LISA), ("gsva", GSVA_BASE), ("gsva", GSVA_COMPLETE)]
ORIGINAL_IMAGE_ID = -200


def recorded_rows(system: str) -> list[tuple[str, str, list[int]]]:
    """Case, text and ids (without padding) of every recorded row."""
    meta, rows = load_meta(system), []
    for name, ids in load_tensors(system).items():
        case, _, kind = name.rpartition("/")
        if kind != "input_ids":
            continue
        texts = meta.get(f"{case}/conversations") or [meta[case]["prompt"]]
        for text, row in zip(texts, ids.tolist(), strict=True):
            while row[-1] == 0:
                row.pop()
            rows.append((case, text, row))
    return rows


def copy_tokenizer(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        if "token" in file.name:
            shutil.copy(file, target)
    return target


def change_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


def tokens(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(("system", "folder"), FOLDERS, ids=lambda value: getattr(value, "name", value))
def test_ids_equal_the_recorded_ones(system, folder, tmp_path):
    built = build_tokenizer(folder, system)
    built.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    rows = recorded_rows(system)
    assert len({case for case, _, _ in rows}) >= 8
    for case, text, ids in rows:
        expected = [built.image_token_id if token_id == ORIGINAL_IMAGE_ID else token_id for token_id in ids]
        assert built(text).input_ids == expected, case
        assert reloaded(text).input_ids == expected, case


@pytest.mark.parametrize(("system", "folder"), FOLDERS, ids=lambda value: getattr(value, "name", value))
def test_task_tokens_keep_their_ids_and_image_comes_last(system, folder):
    recorded = load_meta(system)["tokens"]
    tokenizer = build_tokenizer(folder, system)
    assert tokenizer.convert_tokens_to_ids("[SEG]") == recorded["seg"]
    assert tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"]) == [*recorded["im_start"], *recorded["im_end"]]
    if system == "gsva":
        assert tokenizer.convert_tokens_to_ids("[REJ]") == recorded["rej"]
    assert tokenizer.image_token == "<image>"
    assert tokenizer.image_token_id == len(tokenizer) - 1 == recorded["vocab"]
    assert tokenizer.pad_token == tokenizer.unk_token == "<unk>"
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


# What the slow LlamaTokenizer of transformers 4.31.0 (LISA) and 4.44.2 (GSVA) makes of these texts.
SLOW_TOKENS = {
    "lisa": {
        "a [SEG] and the dog [SEG] .": "▁a [SEG] ▁and ▁the ▁ do g [SEG] ▁ .",
        "a  b</s> a\n[SEG]\n\n the": "▁a ▁ ▁b </s> ▁ ▁a [SEG] ▁the",
        "the <image> a": "▁the ▁ <image> ▁ ▁a",
        "[SEG][SEG] </s> [SEG]": "[SEG] [SEG] </s> [SEG]",
        "é ▁a [SEG": "▁ <0xC3> <0xA9> ▁ ▁a ▁ <0x5B> S E <0x47>",
        "USER: <im_start><image><im_end>\n the": "▁ US ER : <im_start> <image> <im_end> ▁the",
    },
    "gsva": {
        "a [SEG] and the dog [SEG] .": "▁a ▁ [SEG] ▁ ▁and ▁the ▁ dog ▁ [SEG] ▁ ▁ .",
        "a  b</s> a\n[SEG]\n\n the": "▁a ▁ ▁b </s> ▁ ▁a <0x0A> [SEG] ▁ <0x0A> <0x0A> ▁the",
        "the <image> a": "▁the ▁ <image> ▁ ▁a",
        "[SEG][SEG] </s> [SEG]": "[SEG] [SEG] ▁ ▁ </s> ▁ ▁ [SEG]",
        "é ▁a [SEG": "▁ <0xC3> <0xA9> ▁ ▁a ▁ <0x5B> S E <0x47>",
        "USER: <im_start><image><im_end>\n the": "▁ US ER : ▁ <im_start> <image> <im_end> ▁ <0x0A> ▁the",
    },
}


@pytest.mark.parametrize(("system", "folder"), [("lisa", LISA), ("gsva", GSVA_BASE)], ids=["lisa", "gsva"])
def test_white_space_around_added_tokens_is_the_slow_tokenizers(system, folder):
    tokenizer = build_tokenizer(folder, system)
    for text, expected in SLOW_TOKENS[system].items():
        assert tokens(tokenizer, text) == expected.split(" "), text


def test_white_space_goes_around_named_tokens_saved_as_plain_strings(tmp_path):
    # transformers 4.31 kept white space only around tokens that were saved as AddedToken
    folder = copy_tokenizer(LISA, tmp_path / "plain")
    change_json(folder / "special_tokens_map.json", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert tokens(build_tokenizer(folder, "lisa"), "a </s> a") == ["▁a", "</s>", "▁a"]
    assert tokens(build_tokenizer(LISA, "lisa"), "a </s> a") == ["▁a", "▁", "</s>", "▁", "▁a"]


@pytest.mark.parametrize("present", [["<im_patch>", "<im_start>", "<im_end>"], ["<im_patch>"], []], ids=len)
@pytest.mark.parametrize("system", ["lisa", "gsva"])
def test_tokens_that_the_base_brings_are_not_added_again(system, present, tmp_path):
    folder = copy_tokenizer(GSVA_BASE, tmp_path / "base")
    base_size = len(build_tokenizer(GSVA_BASE, system)) - (4 if system == "lisa" else 5)
    if present:
        change_json(folder / "added_tokens.json", **{token: base_size + i for i, token in enumerate(present)})
    slots = ["[SEG]"] if system == "lisa" else ["[SEG]", "[REJ]"]
    order = [*present, *slots, *(token for token in ("<im_start>", "<im_end>") if token not in present), "<image>"]
    tokenizer = build_tokenizer(folder, system)
    assert tokenizer.convert_ids_to_tokens(list(range(base_size, len(tokenizer)))) == order


def test_models_without_tokens_around_the_image_get_none():
    tokenizer = build_tokenizer(GSVA_BASE, "gsva", use_im_start_end=False)
    assert "<im_start>" not in tokenizer.get_vocab()
    assert tokenizer.convert_ids_to_tokens(tokenizer.image_token_id - 1) == "[REJ]"


def test_without_legacy_no_dummy_space_follows_added_tokens(tmp_path):
    folder = copy_tokenizer(GSVA_COMPLETE, tmp_path / "new")
    change_json(folder / "tokenizer_config.json", legacy=False)
    assert tokens(build_tokenizer(folder, "gsva"), "a:[SEG], the") == ["▁a", ":", "[SEG]", ",", "▁the"]
    assert tokens(build_tokenizer(GSVA_COMPLETE, "gsva"), "a:[SEG], the") == ["▁a", ":", "[SEG]", "▁", ",", "▁the"]


def test_a_folder_with_only_the_fast_file(tmp_path):
    fast = LlamaTokenizer.from_pretrained(GSVA_BASE)
    fast.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    ours, expected = build_tokenizer(tmp_path, "gsva"), build_tokenizer(GSVA_BASE, "gsva")
    for _, text, _ in recorded_rows("gsva"):
        assert ours(text).input_ids == expected(text).input_ids


@pytest.mark.parametrize("system", ["lisa", "gsva"])
def test_answers_read_as_they_were_written(system):
    tokenizer = build_tokenizer({"lisa": LISA, "gsva": GSVA_BASE}[system], system)
    answers = ["It is [SEG].", "[SEG].", "Sure, the man in blue shirt [SEG], the small dog [SEG].", "[SEG] and [SEG]"]
    if system == "gsva":
        answers += ["Sure,man in blue shirt:[SEG], the small dog:[REJ].", "[SEG]", "a[SEG]b  [REJ]  c"]
    for answer in answers:
        ids = tokenizer(f"{answer}</s>", add_special_tokens=False).input_ids
        ids = [tokenizer.image_token_id, *ids, tokenizer.pad_token_id]
        written = tokenizer.decode(ids, skip_special_tokens=True).strip()
        # the one thing that is lost: whether a space stood between a slot and a letter
        assert written == answer.replace("[SEG]b", "[SEG] b"), answer


def test_slots_stay_visible_and_the_rest_is_hidden():
    tokenizer = build_tokenizer(GSVA_BASE, "gsva")
    text = "<im_start><image><im_end>[SEG][REJ]</s>"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == "[SEG][REJ]"


def test_saving_twice_gives_the_same_files(tmp_path):
    for name in ("first", "second"):
        build_tokenizer(LISA, "lisa").save_pretrained(tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_a_saved_tokenizer_needs_neither_sentencepiece_nor_protobuf(tmp_path):
    built = build_tokenizer(LISA, "lisa")
    built.save_pretrained(tmp_path)
    code = (
        "import sys\n"
        "for name in ('sentencepiece', 'google', 'google.protobuf'):\n"
        "    sys.modules[name] = None\n"
        "from transformers import AutoTokenizer\n"
        "print(AutoTokenizer.from_pretrained(sys.argv[1])('It is [SEG].').input_ids)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(run.stdout) == built("It is [SEG].").input_ids


class TestErrors:
    def test_unknown_system(self):
        with pytest.raises(ConversionError, match=r"'ivm'.*gsva.*lisa"):
            build_tokenizer(LISA, "ivm")

    def test_no_tokenizer(self, tmp_path):
        with pytest.raises(ConversionError, match=r"neither tokenizer.model nor tokenizer.json.*Copy"):
            build_tokenizer(tmp_path, "lisa")

    def test_git_lfs_pointer(self, tmp_path):
        folder = copy_tokenizer(LISA, tmp_path / "pointer")
        (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
        with pytest.raises(ConversionError, match=r"tokenizer.model: Not a SentencePiece model"):
            build_tokenizer(folder, "lisa")

    def test_broken_json(self, tmp_path):
        folder = copy_tokenizer(LISA, tmp_path / "broken")
        (folder / "added_tokens.json").write_text("{", encoding="utf-8")
        with pytest.raises(ConversionError, match=r"added_tokens.json: Not valid JSON"):
            build_tokenizer(folder, "lisa")

    def test_missing_id(self, tmp_path):
        folder = copy_tokenizer(LISA, tmp_path / "gap")
        change_json(folder / "added_tokens.json", **{"<im_end>": 403})
        with pytest.raises(ConversionError, match=r"'<im_end>' the id 403.*becomes 402"):
            build_tokenizer(folder, "lisa")

    def test_files_that_contradict_each_other(self, tmp_path):
        folder = copy_tokenizer(GSVA_COMPLETE, tmp_path / "two")
        change_json(folder / "added_tokens.json", **{"[SEG]": 421, "[REJ]": 420})
        with pytest.raises(ConversionError, match=r"'\[SEG\]' the id 420, another file of the folder 421"):
            build_tokenizer(folder, "gsva")

    def test_tokenizer_of_another_family(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel"}}), encoding="utf-8"
        )
        with pytest.raises(ConversionError, match="Not the tokenizer of a LLaMA-1 or LLaMA-2 model"):
            build_tokenizer(tmp_path, "lisa")


def test_placeholders_of_tokenizer_files_are_refused(tmp_path):
    check_tokenizer_files(tmp_path)  # what is absent is asked for by whoever needs it
    (tmp_path / "added_tokens.json").write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    with pytest.raises(ConversionError, match="Git LFS pointer"):
        check_tokenizer_files(tmp_path)
