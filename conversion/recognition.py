"""What a weight file or folder holds, and which system and published variant it belongs to.

Names, shapes and types tell it; no tensor's values are read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..loading import import_object
from .errors import ConversionError
from .rules import LORA_A, KeyMap, RuleTable
from .sources import TensorSource, open_source, read_json
from .systems import SOURCE_MODELS, SYSTEMS, PublishedSystem, Recognition


Shapes = Mapping[str, tuple[int, ...]]

UNKNOWN_SIZE = "none of the published sizes"
_HUGGING_FACE_LAYOUT = "in the Hugging Face layout"
_CONVERTED_VARIANT = "a converted repository"
CONVERTED = "reasonseg"
"""`Recognised.system` of a converted checkpoint whose tensors do not say which of the composed systems it is."""
_COMPOSED_KEYS = (r"^(seg_projector|segmenter)\.", r"^vlm\.")
_EITHER = " or "


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint seems to be.

    Args:
        system (`str`): Such as `"lisa"`, `"lisa or gsva"`, `"sam"`, or `"unknown"`.
        variant (`str`): The published checkpoint or size, in words.
        notes (`tuple[str, ...]`): What a user should know before converting it.
        unknown (`tuple[str, ...]`): Tensors that the system's layout does not have.
        dropped (`int`): Tensors that a conversion leaves out.
        lora_rank (`int`, *optional*): Rank of unmerged adapters.
    """

    system: str
    variant: str
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    dropped: int = 0
    lora_rank: int | None = None

    @property
    def systems(self) -> list[str]:
        """The systems it may be of; only some sizes of the vocabulary tell LISA from GSVA."""
        return self.system.split(_EITHER)

    @property
    def converted(self) -> bool:
        """Whether it is a repository of this package already."""
        return self.variant == _CONVERTED_VARIANT

    @property
    def loads_as_it_is(self) -> bool:
        """Whether transformers' own classes load it."""
        return self.variant.endswith(_HUGGING_FACE_LAYOUT)


def recognise(shapes: Shapes) -> Recognised:
    """Tell what a checkpoint is from its tensors' names and shapes.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`): Shape by original name.
    """
    if _holds(shapes, _COMPOSED_KEYS):
        return Recognised(CONVERTED, _CONVERTED_VARIANT, ("`reasonseg verify` checks it.",))
    if _holds(shapes, (r"^module\.",)):
        return Recognised(
            "unknown", "a DeepSpeed training state", ("Its zero_to_fp32.py writes a file that can be converted.",)
        )
    originals = [system.original for system in SYSTEMS.values()]
    originals += [model.recognition for model in SOURCE_MODELS.values()]
    for original in originals:
        if original is not None and _holds(shapes, original.keys):
            return _described_by(original, shapes)
    for system in SYSTEMS.values():
        if system.converted_keys and _holds(shapes, system.converted_keys):
            return _converted(system)
    if _holds(shapes, (r"^(model\.)?language_model\.",)):
        return Recognised("llava", f"LLaVA {_HUGGING_FACE_LAYOUT}", ("transformers loads it as it is.",))
    return Recognised("unknown", "no layout that is known", unknown=tuple(shapes))


def _holds(shapes: Shapes, patterns: tuple[str, ...]) -> bool:
    return all(any(re.search(pattern, name) for name in shapes) for pattern in patterns)


def _described_by(original: Recognition, shapes: Shapes) -> Recognised:
    try:
        return import_object(original.describe)(shapes)
    except ConversionError as error:
        return Recognised("unknown", "a mixture of layouts", (str(error),), tuple(shapes))


def _converted(system: PublishedSystem) -> Recognised:
    if not system.is_known_to_transformers:
        return Recognised(system.name, _CONVERTED_VARIANT, ("`reasonseg verify` checks it.",))
    # A converted repository has the names of the ones that others publish in transformers' layout.
    return Recognised(
        system.name,
        f"{system.title} {_HUGGING_FACE_LAYOUT}",
        ("transformers loads it as it is; `reasonseg verify` checks it if it was converted.",),
    )


def described(
    systems: str | tuple[str, ...], variant: str, table: RuleTable, shapes: Shapes, notes: tuple[str, ...] = ()
) -> Recognised:
    """What a system's own function says about a checkpoint.

    Args:
        systems (`str` or `tuple[str, ...]`): Name of the system, or of those that it may be of.
        variant (`str`): See `Recognised`.
        table (`RuleTable`): How its tensors are renamed; what it does not know is unknown.
        shapes (`Mapping[str, tuple[int, ...]]`): Shape by original name.
        notes (`tuple[str, ...]`): See `Recognised`.
    """
    system = systems if isinstance(systems, str) else _EITHER.join(systems)
    keys = table.apply(shapes)
    return Recognised(system, variant, notes, tuple(keys.unmatched), len(keys.dropped), _lora_rank(keys, shapes))


def _lora_rank(keys: KeyMap, shapes: Shapes) -> int | None:
    return next((shapes[parts[LORA_A]][0] for parts in keys.targets.values() if LORA_A in parts), None)


@dataclass(frozen=True)
class TensorLine:
    """One tensor.

    Args:
        name (`str`): Its name in the file.
        shape (`tuple[int, ...]`): Its shape.
        dtype (`str`): Its type, such as `"bfloat16"`.
        num_bytes (`int`): Its size.
        file (`str`): Name of the file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    file: str


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Args:
        path (`Path`): The file or folder.
        recognised (`Recognised`): System and variant.
        tensors (`list[TensorLine]`): In the order of the files.
    """

    path: Path
    recognised: Recognised
    tensors: list[TensorLine]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def bytes_by_dtype(self) -> dict[str, int]:
        sizes = Counter()
        for tensor in self.tensors:
            sizes[tensor.dtype] += tensor.num_bytes
        return dict(sizes)


def inspect_checkpoint(path: str | Path) -> Inspection:
    """List the tensors of a file or folder and tell what it is.

    Args:
        path (`str` or `Path`): A weight file, or a folder with one or with shards.

    Raises:
        ConversionError: It is missing, damaged, or no checkpoint.
    """
    path = Path(path)
    source = open_source(path)
    lines = [_line(source, name) for name in source.names()]
    source.release()
    return Inspection(path, _named(recognise({line.name: line.shape for line in lines}), path), lines)


def _named(found: Recognised, path: Path) -> Recognised:
    """With the system that `config.json` beside converted weights names, as their tensors do not tell it."""
    if found.system != CONVERTED:
        return found
    try:
        model_type = read_json((path if path.is_dir() else path.parent) / "config.json").get("model_type")
    except ConversionError:
        model_type = None
    for name, system in SYSTEMS.items():
        if system.model_type == model_type:
            return replace(found, system=name)
    return replace(found, notes=(*found.notes, "Its config.json would say which system it is."))


def _line(source: TensorSource, name: str) -> TensorLine:
    info = source.info(name)
    size = math.prod(info.shape) * info.dtype.itemsize
    return TensorLine(name, info.shape, str(info.dtype).removeprefix("torch."), size, source.file(name).name)
