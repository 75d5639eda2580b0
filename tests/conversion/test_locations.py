"""Checkpoints, towers, bases and SAM by their name on the Hub, through its own client, from a Hub on this machine."""

import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from typer.testing import CliRunner

from reasonseg.cli import app
from reasonseg.conversion.convert_gsva import convert_gsva
from reasonseg.conversion.convert_ivm import convert_ivm
from reasonseg.conversion.convert_lisa import convert_lisa
from reasonseg.conversion.convert_vip_llava import convert_vip_llava
from reasonseg.conversion.errors import ConversionError
from reasonseg.conversion.locations import hub_snapshot, locate, location_name, pin
from reasonseg.conversion.manifest import MANIFEST, read_manifest
from reasonseg.conversion.sources import open_source
from reasonseg.conversion.trained import Base, export_trained, restore
from reasonseg.conversion.verify import verify_repository
from tests.support.hub_server import HubServer, Repo, allow_only_this_machine
from tests.support.originals import GSVA, LISA, SAM_PREFIX, digests, gsva_state, lisa_state, read, write_lisa
from tests.support.parity_data import PARITY, PEFT_PREFIX, gsva_vision_tower
from tests.support.recorded_vip_llava import CHECKPOINT as VIP_LLAVA
from tests.support.recorded_vip_llava import TOWER as VIP_LLAVA_TOWER
from tests.support.trained_base import write_base


TOWER = LISA / "vision_tower"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    allow_only_this_machine(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def use_endpoint(monkeypatch, endpoint):
    """What HF_ENDPOINT sets when the client is imported."""
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        use_endpoint(monkeypatch, server.endpoint)
        yield server


def put(hub, name, files):
    """Enter a folder, or contents by path, as a commit; returns its hash."""
    if isinstance(files, Path):
        files = {path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*") if path.is_file()}
    repo = hub.repos.setdefault(name, Repo(private=False))
    return repo.commit("main", files, "upload")


def downloaded(hub):
    return {path.split("/resolve/")[1].split("/", 1)[1] for method, path in hub.requests if "/resolve/" in path}


def test_what_is_here_is_not_looked_up(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert locate("org/name") == pin(Path("org/name")) == Path("org/name")
    for path in ("nowhere", "/no/where", "./no/where", "../no/where", "no/weights.pth", "a/b/c", Path("no/where")):
        assert locate(path) == Path(path)  # whoever opens it says that it is missing
        assert pin(path) == path
    assert hub.requests == []


def test_only_what_is_needed_is_downloaded(hub):
    tensors = {"a": torch.ones(2)}
    commit = put(
        hub,
        "org/model",
        {
            "config.json": b"{}",
            "tokenizer.model": b"t",
            "README.md": b"r",
            "modeling.py": b"import os",
            "model-00001-of-00001.safetensors": safetensors_bytes(tensors),
            "model.safetensors.index.json": b"{}",
            "pytorch_model.bin": b"x",
            "tf_model.h5": b"x",
            "onnx/model.safetensors": b"x",
        },
    )
    small = locate("org/model", weights=False)
    assert small.name == commit
    assert downloaded(hub) == {"config.json", "tokenizer.model"}
    assert pin("org/model") == f"org/model@{commit}"
    assert downloaded(hub) == {"config.json", "tokenizer.model"}
    assert locate("org/model") == small
    assert {path.name for path in small.iterdir()} == downloaded(hub)
    assert downloaded(hub) - {"config.json", "tokenizer.model"} == {
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    }


def test_of_a_diffusion_model_only_the_parts_in_use_are_downloaded(hub):
    small = {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "text_encoder/config.json"}
    features = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    features |= {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    unused = {"v1-5-pruned.safetensors", "safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin"}
    unused |= {"unet/diffusion_pytorch_model.fp16.safetensors", "feature_extractor/preprocessor_config.json"}
    text = {"text_encoder/model.safetensors"}
    contents = {"a": torch.ones(2)}
    put(
        hub,
        "org/diffusion",
        {
            path: safetensors_bytes(contents) if path.endswith(".safetensors") else b"{}"
            for path in small | features | unused | text
        },
    )
    assert set(open_source(locate("org/diffusion")).names()) == {"unet.a", "vae.a"}
    assert downloaded(hub) == small | features
    folder = locate("org/diffusion", parts=("unet", "vae", "text_encoder"))
    assert downloaded(hub) == small | features | text
    assert set(open_source(folder).names()) == {"unet.a", "vae.a", "text_encoder.a"}


def test_an_adapter_comes_with_its_config_from_whichever_folder(hub):
    own = {"adapter_model.safetensors": b"w", "adapter_config.json": b"{}"}
    inside = {f"huggingface/{name}": content for name, content in own.items()}
    put(hub, "org/star", {"README.md": b"r", "huggingface/tokenizer.json": b"{}", **inside})
    put(hub, "org/flat", own)
    put(hub, "org/both", {f"{folder}/{name}": content for folder in "ab" for name, content in own.items()})
    for name in ("org/star", "org/star/huggingface/adapter_model.safetensors"):
        file = locate(name, adapter=True)
        assert [path.name for path in sorted(file.parent.iterdir())] == sorted(own)
        assert file.parts[-2:] == ("huggingface", "adapter_model.safetensors")
    assert downloaded(hub) == inside.keys()
    assert own.keys() == {path.name for path in locate("org/flat", adapter=True).iterdir()}
    with pytest.raises(ConversionError, match=r"several adapters, in a, b\. .*org/both/a/adapter_model\.safetensors"):
        locate("org/both", adapter=True)


def test_revisions_and_files(hub):
    first = put(hub, "org/sam", {"checkpoints/sam.pth": b"1", "checkpoints/other.pth": b"o"})
    put(hub, "org/sam", {"checkpoints/sam.pth": b"2", "only.pth": b"3"})
    assert locate("org/sam/checkpoints/sam.pth").read_bytes() == b"2"
    assert locate(f"org/sam/checkpoints/sam.pth@{first}").read_bytes() == b"1"
    assert [path.name for path in locate("org/sam").iterdir() if path.is_file()] == ["only.pth"]
    assert downloaded(hub) == {"checkpoints/sam.pth", "only.pth"}
    with pytest.raises(ConversionError, match=r"no file 'sam\.pth'.*Pass ORG/NAME/FILE.*checkpoints/sam\.pth"):
        locate("org/sam/sam.pth")
    with pytest.raises(ConversionError, match=r"holds no weights at its top.*checkpoints/sam\.pth"):
        locate(f"org/sam@{first}")


def test_files_beside_shards_are_downloaded_too(hub):
    """As LISA v0 was published: an index for the language model only."""
    files = {"pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "pytorch_model-visual_model.bin"}
    put(hub, "org/v0", dict.fromkeys([*files, "training_args.bin"], b"x"))
    assert {path.name for path in locate("org/v0").iterdir()} == files


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("org/LISA-7B-v1", "LISA-7B-v1"),
        ("org/vip-llava-phi-3-mini-3.8b@main", "vip-llava-phi-3-mini-3.8b"),
        ("org/gsva/weights/gsva-7b-pt.bin@v1/2", "gsva-7b-pt.bin"),
        ("/no/where/LISA-7B@v1", "LISA-7B@v1"),
        (Path("org/name@main"), "name@main"),
    ],
    ids=str,
)
def test_what_a_location_is_called(hub, location, name):
    assert location_name(location) == name
    assert hub.requests == []


def test_what_is_here_is_called_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "org" / "name@main").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "org")
    assert location_name(".") == "org"
    monkeypatch.chdir(tmp_path)
    assert location_name("org/name@main") == "name@main"


@pytest.mark.parametrize("convert", [convert_lisa, convert_gsva, convert_ivm, convert_vip_llava])
def test_checkpoints_that_are_nowhere(hub, tmp_path, convert):
    needed = {"vision_tower": TOWER} if convert is convert_lisa else {}
    needed |= {"base": GSVA / "base_llava"} if convert in (convert_gsva, convert_ivm) else {}
    with pytest.raises(ConversionError, match=r"'org/nothing' is neither a file or folder on this machine nor"):
        convert("org/nothing", out=tmp_path / "out", **needed)
    assert not (tmp_path / "out").exists()


def test_vip_llava_and_ivm_from_the_hub(hub, tmp_path):
    """What is read is what a folder holds; the conversion of it is tested elsewhere."""
    put(hub, "org/vip-llava-7b", VIP_LLAVA)
    put(hub, "org/tower", VIP_LLAVA_TOWER)
    report = convert_vip_llava("org/vip-llava-7b", vision_tower="org/tower", out=tmp_path / "vip")
    assert report.origins == {"checkpoint": 27, "vision tower": 199}
    assert "# vip-llava-7b" in (tmp_path / "vip" / "README.md").read_text(encoding="utf-8").lower()
    ivm = PARITY / "ivm"
    put(hub, "org/IVM", {"IVM-V1.0.bin": (ivm / "IVM-V1.0.bin").read_bytes()})
    put(hub, "org/sam", {"sam.pth": (ivm / "sam_vit_h_4b8939.pth").read_bytes()})
    put(hub, "org/llava", ivm / "llava_base")
    convert_ivm("org/IVM/IVM-V1.0.bin", base="org/llava", sam="org/sam/sam.pth", out=tmp_path / "ivm")
    sources = read_manifest(tmp_path / "ivm")["sources"]
    assert {role: source["repo"] for role, source in sources.items()} == {
        "checkpoint": "org/IVM",
        "SAM file": "org/sam",
        "base": "org/llava",
    }


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("org/nothing", None, "neither a file or folder on this machine nor a repository.*hf auth login"),
        ("org/model@nothing", None, "nor a revision on the Hub.*@REVISION"),
        ("org/model", 500, "cannot be reached.*500"),
        ("org/a--b", None, "neither a file or folder.*cannot be reached"),
    ],
)
def test_refusals_are_worded(hub, tmp_path, name, code, message):
    put(hub, "org/model", {"config.json": b"{}"})
    hub.refuse = lambda method, path: code
    with pytest.raises(ConversionError, match=message):
        locate(name)


def test_the_commit_of_a_download_is_told(hub, tmp_path):
    commit = put(hub, "org/model", {"config.json": b"{}", "a.pth": b"weights"})
    assert hub_snapshot(locate("org/model", weights=False)) == {"repo": "org/model", "revision": commit}
    file = locate(f"org/model/a.pth@{commit}")
    assert hub_snapshot(file) == {"repo": "org/model", "revision": commit, "path": "a.pth"}
    for other in (
        tmp_path,
        Path("model"),
        file.resolve(),
        tmp_path / "snapshots" / commit,
        file.parent.parent / "main",
    ):
        assert hub_snapshot(other) is None


def test_without_a_network_the_cache_is_used(hub, monkeypatch):
    commit = put(hub, "org/tower", TOWER)
    online = locate("org/tower")
    requests = len(hub.requests)
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert locate("org/tower") == locate(f"org/tower@{commit}") == online
        assert pin("org/tower") == f"org/tower@{commit}"
        with pytest.raises(ConversionError, match=r"'org/other' is neither.*Hub cannot be reached.*HF_HUB_OFFLINE"):
            locate("org/other")
        with pytest.raises(ConversionError, match=r"'org/other' is neither.*HF_HUB_OFFLINE"):
            convert_lisa(LISA / "checkpoint", vision_tower="org/other", out="never")
    assert not Path("never").exists()
    assert len(hub.requests) == requests
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    use_endpoint(monkeypatch, closed)
    assert locate("org/tower") == online
    with pytest.raises(ConversionError, match="the Hub cannot be reached"):
        locate("org/other")


def test_lisa_from_the_hub_is_lisa_from_folders(hub, lisa_repo, tmp_path):
    checkpoint, commit = put(hub, "org/checkpoint", LISA / "checkpoint"), put(hub, "org/tower", TOWER)
    convert_lisa("org/checkpoint@main", vision_tower="org/tower", out=tmp_path / "repo")
    one, other = digests(tmp_path / "repo"), digests(lisa_repo)
    assert one.pop(MANIFEST) != other.pop(MANIFEST)
    assert one == other
    manifest, local = read_manifest(tmp_path / "repo"), read_manifest(lisa_repo)
    tower = {"repo": "org/tower", "revision": commit, "path": "pytorch_model.bin"}
    source = {"repo": "org/checkpoint", "revision": checkpoint}
    assert manifest.pop("sources") == {
        "checkpoint": {**source, "path": "pytorch_model.bin"},
        "config": source,
        "tokenizer": source,
        "vision tower": tower,
    }
    assert local.pop("sources") == {}
    assert manifest == local
    against = {"checkpoint": "org/checkpoint", "vision tower": "org/tower"}
    report = verify_repository(tmp_path / "repo", against=against)
    assert report.ok, report.problems
    assert report.not_compared == {}
    arguments = ["--against", f"org/checkpoint@{checkpoint}", "--vision-tower", "org/tower"]
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "repo"), *arguments])
    assert result.exit_code == 0, result.output


def test_gsva_and_all_it_needs_from_the_hub(hub, gsva_repo, tmp_path):
    """The base's weights are left on the Hub, because the file has all of the language model."""
    tower = put(hub, "org/tower", gsva_vision_tower())
    base = put(
        hub,
        "org/base",
        {path.name: path.read_bytes() for path in (GSVA / "base_llava").iterdir()} | {"pytorch_model.bin": b"x"},
    )
    prefix = f"{PEFT_PREFIX}model.visual_model."
    state = gsva_state()
    sam = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    torch.save(sam, tmp_path / "sam.pth")
    frozen = put(hub, "org/sam", {"weights/sam.pth": (tmp_path / "sam.pth").read_bytes()})
    part = {key: value for key, value in state.items() if not key.startswith(f"{prefix}image_encoder")}
    torch.save(part, tmp_path / "part.bin")
    released = put(hub, "org/gsva", {"part.bin": (tmp_path / "part.bin").read_bytes(), "other.bin": b"o"})
    arguments = ["--base", "org/base@main", "--vision-tower", "org/tower", "--sam", "org/sam/weights/sam.pth"]
    command = ["convert", "gsva", "org/gsva/part.bin", *arguments, "--out", str(tmp_path / "repo")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "repo" / "model.safetensors").read_bytes() == (gsva_repo / "model.safetensors").read_bytes()
    assert read_manifest(tmp_path / "repo")["sources"] == {
        "SAM file": {"repo": "org/sam", "revision": frozen, "path": "weights/sam.pth"},
        "checkpoint": {"repo": "org/gsva", "revision": released, "path": "part.bin"},
        "config": {"repo": "org/base", "revision": base},
        "tokenizer": {"repo": "org/base", "revision": base},
        "vision tower": {"repo": "org/tower", "revision": tower},  # its config: the file has the weights
    }
    assert "weights/sam.pth" in downloaded(hub)
    tower_weights = {path.name for path in (gsva_vision_tower()).iterdir()}
    assert "pytorch_model.bin" in tower_weights
    assert len([path for method, path in hub.requests if path.startswith("/org/base/") and path.endswith(".bin")]) == 0


def test_the_base_s_weights_are_fetched_where_they_are_needed(hub, tmp_path):
    trained = {key: value for key, value in lisa_state().items() if not key.startswith("model.layers.")}
    source = write_lisa(tmp_path / "source", trained)
    base = write_lisa(tmp_path / "base", {k: v for k, v in lisa_state().items() if not k.startswith(SAM_PREFIX)})
    put(hub, "org/base", base)
    report = convert_lisa(source, vision_tower=TOWER, base="org/base", out=tmp_path / "repo")
    assert report.origins["base"] == 18
    assert "pytorch_model.bin" in downloaded(hub)


def test_an_existing_target_is_refused_before_anything_is_downloaded(hub, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    for convert, source in ((convert_lisa, LISA / "checkpoint"), (convert_gsva, GSVA / "gsva-tiny.bin")):
        arguments = {"vision_tower": "org/tower", "base": "org/base", "out": tmp_path / "out"}
        with pytest.raises(ConversionError, match="exists already"):
            convert(source, **arguments)
        with pytest.raises(ConversionError, match="dtype is 'int8'"):
            convert("org/checkpoint", **arguments | {"out": tmp_path / "new"}, dtype="int8")
    assert hub.requests == []


def test_trained_tensors_on_a_base_from_the_hub(hub, lisa_repo, tmp_path):
    here = write_base(tmp_path)
    put(hub, "org/llava", here.llava)
    put(hub, "org/tower", TOWER)
    put(hub, "org/sam", {"sam.pth": here.sam.read_bytes()})
    there = Base("org/llava", "org/tower", "org/sam/sam.pth")
    export_trained(lisa_repo, tmp_path / "trained", base=there)
    restore(tmp_path / "trained", tmp_path / "restored", base=there)
    assert digests(tmp_path / "restored") == digests(lisa_repo)
    assert read(locate("org/llava") / "pytorch_model.bin").keys() == read(here.llava / "pytorch_model.bin").keys()
    arguments = ["--base", "org/llava", "--vision-tower", "org/tower", "--sam", "org/sam/sam.pth"]
    result = CliRunner().invoke(
        app, ["restore", str(tmp_path / "trained"), *arguments, "--out", str(tmp_path / "again")]
    )
    assert result.exit_code == 0, result.output
