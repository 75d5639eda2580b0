"""Which parameters learn: everything, or LoRA in the language model beside the parts that the originals train."""

import re

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


# q_proj and v_proj also exist in CLIP and in SAM's decoder; only those of the language model are meant.
LORA_TARGETS = r"vlm\..*language_model\..*\.(q_proj|v_proj)"


def add_lora(model: nn.Module, r: int, lora_alpha: float, lora_dropout: float, targets: str = LORA_TARGETS) -> None:
    """
    Puts adapters into the language model, in place; the model keeps its class and its methods.

    Raises:
        ValueError: If no module matches `targets`.
    """
    if not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise ValueError(f"No module of {type(model).__name__} matches the LoRA targets {targets!r}.")
    inject_adapter_in_model(
        LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets), model
    )


def select_trained(model: nn.Module, patterns: list[str] | tuple[str, ...] | None) -> int:
    """
    Lets the adapters and the parameters whose names match a pattern learn, and freezes the others.

    LLaVA v1's projector is one Linear; the identity that stands as its second one never learns, so that the model
    stays one that the original layout can hold.

    Args:
        patterns: Regular expressions, searched from the start of the name; `None` lets everything learn.

    Returns:
        Number of parameters that learn.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns or ():
        if not any(re.match(pattern, name) for name in names):
            raise ValueError(f"No parameter matches {pattern!r}; names look like {names[0]!r} or {names[-1]!r}.")
    trained, fixed = 0, identity_parameters(model)
    for name, parameter in model.named_parameters():
        learns = patterns is None or ".lora_" in name or any(re.match(pattern, name) for pattern in patterns)
        learns = learns and name not in fixed
        parameter.requires_grad_(learns)
        trained += parameter.numel() if learns else 0
    return trained


def identity_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of a multimodal projector's second Linear that does nothing."""
    prefix = "vlm.model.multi_modal_projector.linear_2"
    parameters = {name: value for name, value in model.named_parameters() if name.startswith(f"{prefix}.")}
    weight, bias = parameters.get(f"{prefix}.weight"), parameters.get(f"{prefix}.bias")
    if weight is None or weight.shape[0] != weight.shape[1]:
        return set()
    is_identity = torch.equal(weight, torch.eye(len(weight)).to(weight)) and (bias is None or not bias.any())
    return set(parameters) if is_identity else set()


def remove_lora(model: nn.Module) -> None:
    """Takes the adapters out again, in place; the weights below them are as they were before `add_lora`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.get_base_layer())


def has_lora(model: nn.Module) -> bool:
    return any(isinstance(module, LoraLayer) for module in model.modules())


def merged_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The weights as they act, under the names of the model without adapters: W + (alpha / r) B A, added in float32.

    Args:
        model: Gives the scale of each adapter; its own weights are not touched.
        state_dict: Complete weights, also where the model itself holds only a shard of them.
    """
    merged = {name.replace(".base_layer.", "."): value for name, value in state_dict.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            down = state_dict[f"{name}.lora_A.{adapter}.weight"].float()
            up = state_dict[f"{name}.lora_B.{adapter}.weight"].float()
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = (weight.float() + module.scaling[adapter] * (up @ down)).to(weight.dtype)
    return merged


def trained_state_dict(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What learns, adapters apart from the weights below them: all that a resumed run has to restore."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in state_dict.items() if name in trained}


def without_copies(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One name of every tensor that modules share: gathered from many processes, it lies there under each."""
    names = {name for values in (model.named_parameters(), model.named_buffers()) for name, _ in values}
    return {name: value for name, value in state_dict.items() if name in names}


__all__ = [
    "LORA_TARGETS",
    "add_lora",
    "has_lora",
    "merged_state_dict",
    "remove_lora",
    "select_trained",
    "trained_state_dict",
    "without_copies",
]
