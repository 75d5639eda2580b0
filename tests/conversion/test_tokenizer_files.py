"""A hostile tokenizer ends a process that was made for it, never the one that converts or verifies."""

import base64
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from reasonseg.conversion import tokenizer_files
from reasonseg.conversion.convert_ivm import convert_ivm
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.manifest import update_manifest
from reasonseg.conversion.tokenizer_files import check_fast_tokenizers
from reasonseg.conversion.tokenizers import build_tokenizer
from reasonseg.conversion.tokenizers_fast import build_fast_tokenizer
from reasonseg.conversion.verify import verify_repository
from reasonseg.model_names import EMBEDDED_MODEL
from tests.support.parity_data import PARITY


BASE = json.loads((EMBEDDED_MODEL / "tokenizer.json").read_text())
REAL = [*sorted(PARITY.rglob("tokenizer.json")), EMBEDDED_MODEL / "tokenizer.json"]
# What the published models split their text with.
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def splitting(expression):
    pattern = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return BASE | {"pre_tokenizer": pattern}


def replacing(kind, pattern, content, times=1):
    step = {"type": "Replace", "pattern": {kind: pattern}, "content": content}
    return BASE | {"normalizer": {"type": "Sequence", "normalizers": [step] * times}}


def padding(**fields):
    usual = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    return BASE | {"padding": usual | fields}


def bpe(**fields):
    usual = {
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        **{"fuse_unk": False, "byte_fallback": False, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    }
    return BASE | {"model": {"type": "BPE"} | usual | fields}


def unigram(vocab, unknown):
    return BASE | {"model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": False}}


def charsmap(data):
    return BASE | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}}


HOSTILE = {
    "expression that never ends": splitting(r"(a+)+$"),
    "expression that never ends, with a class": splitting(r"(\p{L}+)*[0-9]"),
    "expression that never ends, with a letter of its own": splitting(r"(z+z+)+y"),
    "expression of a high power": splitting(r"\s*\s*\s*\s*\s*\s*q"),
    "expression that never ends, in a replacement": replacing("Regex", r"(_|_)*$", "y"),
    "expression too deep": splitting("(" * 200_000 + ")" * 200_000),
    "expression that is none": splitting("(a"),
    "text that grows": replacing("String", "q", "qq", 64),
    "text that grows everywhere": replacing("Regex", ".", "qq", 64),
    "padding of two thousand million": padding(strategy={"Fixed": 2_000_000_000}),
    "padding to a multiple of it": padding(strategy="BatchLongest", pad_to_multiple_of=2_000_000_000),
    "truncation that overlaps": BASE
    | {"truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 7}},
    "map of characters that lies": charsmap(b"\xff" * 36),
    "map of characters that is empty": charsmap(b""),
    "template of a token that is not there": BASE
    | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<nope>", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "merge of what is not there": bpe(merges=[["a", "c"]]),
    "prefix longer than its tokens": bpe(continuing_subword_prefix="#" * 11),
    "dropout above one": bpe(dropout=7.5),
    "unknown token outside": unigram([["a", 0.0]], 99),
    "no token at all": unigram([], None),
    "no object": [1],
    "deep": b'{"a":' * 100_000,
    "no text": b"\xff\xfe{}",
    "empty": b"",
}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(tokenizer_files, "_WORK_SECONDS", 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizers(tmp_path, name):
    path = write(tmp_path / "tokenizer.json", HOSTILE[name])
    with pytest.raises(ConversionError, match="Not a tokenizer that can be used") as caught:
        check_fast_tokenizers([path])
    assert caught.value.path == str(path)
    assert len(caught.value.cause) < 400


@pytest.mark.parametrize(
    "content", [splitting(GPT_2), splitting(LLAMA_3), bpe(), BASE], ids=["gpt", "llama", "bpe", "words"]
)
def test_real_ones_pass(tmp_path, content):
    check_fast_tokenizers([write(tmp_path / "tokenizer.json", content)])


def test_those_of_the_recordings_pass_in_one_process(monkeypatch):
    processes, run = [], tokenizer_files.subprocess.run
    monkeypatch.setattr(tokenizer_files.subprocess, "run", lambda *a, **k: processes.append(a) or run(*a, **k))
    assert len(REAL) >= 4
    check_fast_tokenizers([*REAL, Path("there/is/no/tokenizer.json")])
    assert len(processes) == 1


def test_the_one_of_several_that_is_wrong_is_named(tmp_path):
    paths = [write(tmp_path / name, content) for name, content in (("a", BASE), ("b", bpe(dropout=7.5)), ("c", BASE))]
    with pytest.raises(ConversionError) as caught:
        check_fast_tokenizers(paths)
    assert caught.value.path == str(paths[1])


def test_modules_in_the_working_folder_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tokenizers", "json", "re", "resource"):
        (tmp_path / f"{name}.py").write_text("open('canary', 'w')")
    check_fast_tokenizers([EMBEDDED_MODEL / "tokenizer.json"])
    assert not (tmp_path / "canary").exists()


def test_mutations(tmp_path):
    """Whatever a changed file does, this process keeps running and gets an error or a tokenizer that works."""
    good = (EMBEDDED_MODEL / "tokenizer.json").read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for number in range(40):
        changed = bytearray(good)
        for _ in range(3):
            where = int(torch.randint(len(changed), (), generator=generator))
            digits = b'9,-}{["\\\x00'
            changed[where] = digits[int(torch.randint(len(digits), (), generator=generator))]
        path = write(tmp_path / f"{number}.json", bytes(changed))
        try:
            check_fast_tokenizers([path])
        except ConversionError as error:
            refused += str(path) in str(error)
    assert refused > 20


def repository(lisa_repo, tmp_path, content):
    repo = shutil.copytree(lisa_repo, tmp_path / "repo")
    write(repo / "tokenizer.json", content)
    update_manifest(repo, ["tokenizer.json"])
    return repo


@pytest.mark.parametrize("name", ["map of characters that lies", "prefix longer than its tokens"])
def test_a_repository_with_one_is_reported(lisa_repo, tmp_path, name):
    report = verify_repository(repository(lisa_repo, tmp_path, HOSTILE[name]))
    assert [problem.file for problem in report.problems] == ["tokenizer.json"]
    assert "Not a tokenizer" in report.problems[0].cause


def test_a_base_with_one_is_refused(tmp_path):
    base = shutil.copytree(PARITY / "ivm" / "llava_base", tmp_path / "base")
    write(base / "tokenizer.json", HOSTILE["map of characters that lies"])
    with pytest.raises(ConversionError, match="Not a tokenizer") as caught:
        convert_ivm(
            PARITY / "ivm" / "IVM-V1.0.bin",
            base=base,
            sam=PARITY / "ivm" / "sam_vit_h_4b8939.pth",
            out=tmp_path / "out",
        )
    assert caught.value.path == str(base / "tokenizer.json")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConversionError, match="Not a tokenizer"):
        build_fast_tokenizer(base)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="This system has no pipes.")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(ConversionError, match="a device or pipe"):
        check_fast_tokenizers([tmp_path / "tokenizer.json"])


def field(number, kind, value):
    """A field of a protobuf message."""
    size, length = len(value) if kind == 2 else value, b""
    while True:
        length += bytes([size % 128 + (128 if size >= 128 else 0)])
        size //= 128
        if not size:
            return bytes([number << 3 | kind]) + length + (value if kind == 2 else b"")


@pytest.mark.parametrize("pieces", [[b"x" * 1_000_000], [b"%08d" % i * 50 for i in range(5000)]], ids=["long", "many"])
def test_pieces_that_no_language_has(tmp_path, pieces):
    """Each is taken apart at every letter."""
    trainer = field(2, 2, field(3, 0, 2))
    normalizer = field(3, 2, field(4, 0, 0))
    model = b"".join(field(1, 2, field(1, 2, piece)) for piece in pieces)
    (tmp_path / "tokenizer.model").write_bytes(model + trainer + normalizer)
    start = time.process_time()
    with pytest.raises(ConversionError, match="longer ones than any language needs"):
        build_tokenizer(tmp_path)
    assert time.process_time() - start < 2
