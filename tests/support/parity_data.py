"""Read the recordings of the original implementations in `tests/parity`."""

import atexit
import json
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


PARITY = Path(__file__).parents[1] / "parity"
PEFT_PREFIX = "base_model.model."
EMBEDDED_TOWER_PREFIX = f"{PEFT_PREFIX}model.vision_tower.vision_tower."
SAMPLED = re.compile(r"_(?:stride(?P<stride>\d+)|every(?P<step>\d+)th)$")


def load_meta(system: str) -> dict:
    """Return `meta.json` of `system` (such as `"lisa"`): prompts, token strings, losses, metrics, key lists."""
    return json.loads((PARITY / system / "meta.json").read_text(encoding="utf-8"))


def load_arrays(path: Path) -> dict[str, torch.Tensor]:
    """Read a compressed `.npz` of arrays by name."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@cache
def _tensors(system: str) -> dict[str, torch.Tensor]:
    folder = PARITY / system
    # Ids and packed masks compress well, states and logits do not.
    return load_file(folder / "tensors.safetensors") | load_arrays(folder / "ids_and_masks.npz")


def load_tensors(system: str) -> dict[str, torch.Tensor]:
    """Return all recorded tensors of `system` by `case/name`; callers share them, so do not write to them."""
    return dict(_tensors(system))


def load_case(system: str, case: str) -> dict[str, torch.Tensor]:
    """Return the tensors recorded for one case, e.g. `"infer/img0"`, under their names without the case.

    Raises:
        KeyError: no tensor is recorded for `case`.
    """
    tensors = {name[len(case) + 1 :]: value for name, value in _tensors(system).items() if name.startswith(f"{case}/")}
    if not tensors:
        raise KeyError(f"Nothing is recorded for {case!r} of {system!r}.")
    return tensors


def sampled_like(full: torch.Tensor, recorded_name: str) -> torch.Tensor:
    """Take from `full` what a recording named `recorded_name` keeps of it.

    Args:
        full: the complete tensor; `(..., height, width)` for `*_strideN`, `(rows, positions, ...)` for `*_everyNth`.
        recorded_name: name of the recording; one without such an ending keeps everything.
    """
    match = SAMPLED.search(recorded_name)
    if match is None:
        return full
    if match["stride"]:
        stride = int(match["stride"])
        return full[..., ::stride, ::stride]
    return full[:, :: int(match["step"])]


def find_recorded(tensors: dict[str, torch.Tensor], name: str) -> tuple[str, torch.Tensor]:
    """Find the recording of `name`, complete or sampled, and return its full name and value.

    Raises:
        KeyError: neither `name` nor a sampled form of it is recorded.
    """
    for candidate, value in tensors.items():
        if candidate == name or SAMPLED.sub("", candidate) == name:
            return candidate, value
    raise KeyError(f"No recording of {name!r}; there are {sorted(tensors)}.")


def unpack_mask(packed: torch.Tensor, width: int) -> np.ndarray:
    """Turn a `*_packed` recording `(..., height, ceil(width / 8))` into a bool mask `(..., height, width)`."""
    return np.unpackbits(packed.numpy(), axis=-1, count=width).astype(bool)


def unmerged_lisa(folder: Path) -> Path:
    """Write LISA's unmerged training state to `folder/pytorch_model.bin` and return that path.

    Everything but the adapters and the weights below them equals the merged checkpoint and the vision tower, so only
    the rest is stored.
    """
    merged = torch.load(PARITY / "lisa" / "checkpoint" / "pytorch_model.bin", weights_only=True)
    tower = torch.load(PARITY / "lisa" / "vision_tower" / "pytorch_model.bin", weights_only=True)
    state = {PEFT_PREFIX + name: value for name, value in merged.items()}
    state |= {EMBEDDED_TOWER_PREFIX + name: value for name, value in tower.items() if name.startswith("vision_model.")}
    state |= load_file(PARITY / "lisa" / "unmerged" / "adapters.safetensors")
    state = {name: state[name] for name in load_meta("lisa")["unmerged_keys"]}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pytorch_model.bin"
    torch.save(state, path)
    return path


@cache
def gsva_vision_tower() -> Path:
    """Put GSVA's CLIP folder together, its weights taken from the copy inside GSVA's own file, and return its path."""
    folder = Path(tempfile.mkdtemp(prefix="gsva-vision-tower-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for file in (PARITY / "gsva" / "vision_tower").iterdir():
        shutil.copy(file, folder)
    state = torch.load(PARITY / "gsva" / "gsva-tiny.bin", weights_only=True)
    tower = {
        name.removeprefix(EMBEDDED_TOWER_PREFIX): value
        for name, value in state.items()
        if name.startswith(EMBEDDED_TOWER_PREFIX)
    }
    # What the folder of a whole CLIP holds besides; both systems' towers had the same.
    whole = torch.load(PARITY / "lisa" / "vision_tower" / "pytorch_model.bin", weights_only=True)
    others = {name: value for name, value in whole.items() if not name.startswith("vision_model.")}
    torch.save(others | tower, folder / "pytorch_model.bin")
    return folder


IVM_WRAPPED = "prompt_encoder.model.base_model.model."


def ivm_dump(folder: Path) -> Path:
    """Write the dump of IVM's whole module to `folder/ivm.bin` and return that path.

    It is LLaVA, SAM's image encoder and the trained parts, which are stored one by one.
    """
    ivm = PARITY / "ivm"
    state = torch.load(ivm / "IVM-V1.0.bin", weights_only=True)
    state |= torch.load(ivm / "sam_vit_h_4b8939.pth", weights_only=True)
    base = load_file(ivm / "llava_base" / "model.safetensors")
    keys = load_meta("ivm")["bin_full_keys"]
    whole = {}
    for key in keys:
        whole[key] = state[key] if key in state else base[key.removeprefix(IVM_WRAPPED).replace(".base_layer.", ".")]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ivm.bin"
    torch.save(whole, path)
    return path


def difflmm_sources() -> dict[str, Path]:
    """Return what `convert_difflmm` reads, by its arguments."""
    folder = PARITY / "difflmm" / "checkpoint"
    return {
        "source": folder / "difflmm-llava-v1.5-7b-lora",
        "base": folder / "vicuna-7b-v1.5",
        "diffusion": folder / "stable-diffusion-v1-5",
        "vision_tower": folder / "clip-vit-large-patch14-336",
    }


def vip_llava_with_tower(folder: Path) -> Path:
    """Write the recorded ViP-LLaVA with its CLIP tower inside, as its training saves it, and return the folder."""
    checkpoint = PARITY / "vip_llava" / "checkpoint"
    shutil.copytree(checkpoint / "vip-llava-7b", folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tower = torch.load(checkpoint / "clip-vit-large-patch14-336" / "pytorch_model.bin", weights_only=True)
    state |= {f"model.vision_tower.vision_tower.{name}": value for name, value in tower.items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder
