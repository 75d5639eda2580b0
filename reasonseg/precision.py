"""Number formats of a model that is loaded to run: of its weights, of its segmenter, and quantized or compiled."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from .loading import load_pretrained, without_weights


# What a quantization needs; `pip install ".[quantization]"` has both.
QUANTIZATIONS: Mapping[str, str] = {
    "4bit": "bitsandbytes",
    "8bit": "bitsandbytes",
    "int8": "torchao",
    "int4": "torchao",
}
_INT4_GROUP = 128


@dataclass(frozen=True)
class Precision:
    """
    How a model is held and computed. By default as its checkpoint says, neither quantized nor compiled.

    Args:
        dtype (`str`): Of the weights; `auto` keeps what the checkpoint is stored in.
        segmenter_dtype (`str`): Of the segmenter's image encoder; `auto` is what the checkpoint says, else `dtype`.
        quantization (`str`, *optional*): `4bit`, `8bit` (bitsandbytes), `int8` or `int4` (torchao) for the layers of
            the language model. Image encoders, projectors, segmenter and the output embedding stay as they are.
        compile (`bool`): Compile the decoding step and the segmenter's image encoder when they first run.
    """

    dtype: str = "auto"
    segmenter_dtype: str = "auto"
    quantization: str | None = None
    compile: bool = False

    def __post_init__(self):
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization is {self.quantization!r}; allowed are {', '.join(QUANTIZATIONS)}.")

    def settings(self) -> dict[str, str]:
        """What of it decides a result and is not the default, as JSON types."""
        names = ("dtype", "segmenter_dtype", "quantization")
        settings = {name: getattr(self, name) for name in names}
        return {name: value for name, value in settings.items() if value not in (None, "auto")}


def load_model(auto_class: Any, source: str, precision: Precision, device: Any, **options: Any) -> Any:
    """Load a model onto `device`, in evaluation mode.

    Args:
        auto_class: As `AutoModel`.
        source (`str`): A folder, or a name on the Hub.
        precision ([`Precision`]): Number formats.
        device (`torch.device`): Where it is to run.
        options: Further arguments of `load_pretrained`.

    Raises:
        ValueError: The model has no segmenter, or its quantization cannot be had here.
    """
    from transformers import AutoConfig

    if precision.quantization is not None:
        _require(precision.quantization)
    arguments: dict[str, Any] = {"dtype": precision.dtype}
    config = load_pretrained(AutoConfig, source, **options)
    if precision.segmenter_dtype != "auto":
        if not hasattr(config, "segmenter_dtype"):
            raise ValueError(
                f"segmenter_dtype is {precision.segmenter_dtype!r}, but {str(source)!r} has no segmenter. Leave it "
                "out; dtype is that of the whole model."
            )
        arguments["segmenter_dtype"] = precision.segmenter_dtype
    if precision.quantization is not None:
        # Quantized while it is loaded, so that the whole model never lies in memory.
        dtype = config.dtype if precision.dtype == "auto" else precision.dtype
        skipped = _not_in_language_model(without_weights(auto_class, config, **options))
        arguments["quantization_config"] = _quantization_config(precision.quantization, skipped, dtype, device)
        arguments["device_map"] = {"": device}
    model = load_pretrained(auto_class, source, **arguments, **options)
    if precision.quantization is None:
        model = model.to(device)
    return compile_model(model.eval()) if precision.compile else model.eval()


def compile_model(model: Any) -> Any:
    """
    Has `torch.compile` compile the decoding step and the segmenter's image encoder when they first run, in place.

    Decoding then uses a cache of fixed size. The first answer takes minutes longer; worth it for many.

    Args:
        model: Any model of this package, or any of transformers that generates.
    """
    from transformers import CompileConfig

    if (segmenter := getattr(model, "segmenter", None)) is not None:
        segmenter.vision_encoder.compile()
    if model.can_generate():
        config = CompileConfig(mode="default", dynamic=True)
        config._compile_all_devices = True  # by itself transformers compiles on accelerators only
        model.generation_config.cache_implementation = "static"
        model.generation_config.compile_config = config
    return model


def _require(quantization: str) -> None:
    package = QUANTIZATIONS[quantization]
    if find_spec(package) is None:
        raise ValueError(f"quantization is {quantization!r}, which needs {package}. Install it: pip install {package}")


def _not_in_language_model(model: Any) -> list[str]:
    """A pattern, as transformers' quantizers take it, of all modules but the layers of the language model."""
    decoder = getattr(model, "vlm", model).get_decoder()
    name = next(name for name, module in model.named_modules() if module is decoder)
    return [rf"(?!{re.escape(name)}\.).*"]


def _quantization_config(quantization: str, skipped: list[str], dtype: Any, device: Any) -> Any:
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if quantization == "4bit":
        computed_in = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped, **computed_in)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if quantization == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    if torch.device(device).type == "cpu":
        # The only packing with a kernel for processors, `opaque`, has a configuration of its own.
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig as Int4WeightOnlyConfig
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=_INT4_GROUP), modules_to_not_convert=skipped)


__all__ = ["QUANTIZATIONS", "Precision", "compile_model", "load_model"]
