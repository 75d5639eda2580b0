"""Names of a checkpoint that transformers saved, as the parameters of the model that loads it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from .errors import ConversionError
from .rules import Rule, RuleTable


class ExplicitTable(RuleTable):
    """A table with one rule per name, found without trying all of them."""

    def __init__(self, rules: Sequence[Rule], name: str):
        super().__init__(rules, name)
        self._by_source = {rule.source: rule for rule in rules}

    def match(self, key: str) -> Rule | None:
        return self._by_source.get(key)


def transformers_table(model: PreTrainedModel, names: Sequence[str], prefix: str) -> RuleTable:
    """
    The names of a checkpoint in any spelling that transformers reads.

    Args:
        model (`PreTrainedModel`): The model the checkpoint is of; may be on the meta device.
        names (`Sequence[str]`): The checkpoint's names.
        prefix (`str`): What is put before the parameters' names (`"vlm."`).

    Raises:
        ConversionError: The checkpoint stores parameters of this model in parts that transformers joins while loading.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    tied, ignored = set(model.all_tied_weights_keys), _ignored_patterns(model)
    filled: set[str] = set()
    rules = []
    for name in names:
        target, joined = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, joined = name, None
        if joined is not None:
            raise ConversionError(
                f"{name!r} is one of several tensors that {type(model).__name__} joins while loading.",
                next_step="Load it with transformers and save it again with save_original_format=False.",
            )
        if target in tied:
            rules.append(Rule(name, None, reason="it is tied to another parameter"))
        elif any(re.search(pattern, target) for pattern in ignored) and target not in state:
            rules.append(Rule(name, None, reason="transformers does not load it"))
        elif target in filled:
            rules.append(Rule(name, None, reason=f"{target} stands in the checkpoint twice"))
        else:
            filled.add(target)
            rules.append(Rule(name, prefix + target))
    return ExplicitTable(rules, type(model).__name__)


def _ignored_patterns(model: PreTrainedModel) -> list[str]:
    patterns = {r"(?:^|\.)rotary_emb\.inv_freq$", r"(?:^|\.)position_ids$"}
    for module in model.modules():
        patterns |= set(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ())
    return sorted(patterns)
