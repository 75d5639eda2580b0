"""Rename engine: ordered, anchored, reversible rules from original to published parameter names.

A rule is a pair of name templates. `{n}` and `{m}` stand for a number, `{leaf}` for `weight` or `bias` and `{rest}`
for everything that follows. Templates are compiled to anchored regular expressions in both directions, so every table
can be read backwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from .errors import ConversionError


_FIELDS = {"n": r"\d+", "m": r"\d+", "leaf": r"weight|bias", "rest": r".+"}
_FIELD = re.compile(r"\{(\w+)\}")

# The part of a target that an ordinary tensor fills; LoRA factors, and the base of a delta, fill
# the others and are merged into it.
WEIGHT, LORA_A, LORA_B, BASE = "weight", "lora_A", "lora_B", "base"
# Rows that follow those of the weight, where the original holds them as tensors of their own.
ROWS = ("rows_1", "rows_2", "rows_3")


def _compile(template: str) -> re.Pattern[str]:
    pieces = _FIELD.split(template)
    literal, names = pieces[::2], pieces[1::2]
    unknown = set(names) - set(_FIELDS)
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"Template {template!r} may use each of {sorted(_FIELDS)} once; it uses {names}.")
    pattern = re.escape(literal[0])
    for name, text in zip(names, literal[1:], strict=True):
        pattern += f"(?P<{name}>{_FIELDS[name]})" + re.escape(text)
    return re.compile(pattern)


@dataclass(frozen=True)
class Rule:
    """One line of a rename table.

    Args:
        source (`str`): Template of the original name.
        target (`str`, *optional*): Template of the published name with the same fields; `None` drops the tensor.
        part (`str`): What the tensor contributes to its target: `"weight"`, `"lora_A"`, `"lora_B"`, `"base"`, or one
            of `ROWS`.
        reason (`str`): Why the tensor is dropped; required exactly when `target` is `None`.
        optional (`bool`): Whether a complete checkpoint of this layout may lack every tensor of this rule.
    """

    source: str
    target: str | None
    part: str = WEIGHT
    reason: str = ""
    optional: bool = False

    def __post_init__(self):
        if (self.target is None) != bool(self.reason):
            raise ValueError(f"Rule {self.source!r} must have either a target or a reason for dropping it, not both.")
        if self.target is not None and set(_FIELD.findall(self.source)) != set(_FIELD.findall(self.target)):
            raise ValueError(f"Rule {self.source!r} -> {self.target!r} cannot be reversed: the fields differ.")

    @cached_property
    def source_pattern(self) -> re.Pattern[str]:
        return _compile(self.source)

    @cached_property
    def target_pattern(self) -> re.Pattern[str] | None:
        return None if self.target is None else _compile(self.target)

    def forward(self, key: str) -> str | None:
        """The target of `key`, or `None` where this rule does not match or drops."""
        match = self.source_pattern.fullmatch(key)
        return None if match is None or self.target is None else self.target.format(**match.groupdict())

    def backward(self, target: str) -> str | None:
        """The original name of `target`, or `None` where this rule does not produce it."""
        match = None if self.target_pattern is None else self.target_pattern.fullmatch(target)
        return None if match is None else self.source.format(**match.groupdict())


@dataclass
class KeyMap:
    """What a table made of a list of names.

    Args:
        targets (`dict[str, dict[str, str]]`): Target name -> part -> original name.
        dropped (`dict[str, str]`): Original name -> reason.
        unmatched (`list[str]`): Names no rule knows.
        unused_rules (`list[Rule]`): Rules, not marked optional, that matched nothing.
    """

    targets: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    unused_rules: list[Rule] = field(default_factory=list)


class RuleTable:
    """An ordered list of rules; the first one that matches a name decides.

    Args:
        rules (`Sequence[Rule]`): The rules in order of precedence.
        name (`str`): What the table describes, for messages.

    Example:
        >>> table = RuleTable([Rule("blocks.{n}.norm1.{leaf}", "layers.{n}.layer_norm1.{leaf}")], "toy")
        >>> table.rename("blocks.3.norm1.bias")
        'layers.3.layer_norm1.bias'
        >>> table.reverse("layers.3.layer_norm1.bias")
        'blocks.3.norm1.bias'
    """

    def __init__(self, rules: Sequence[Rule], name: str):
        self.rules = tuple(rules)
        self.name = name

    def match(self, key: str) -> Rule | None:
        """The first rule whose source template matches `key`."""
        return next((rule for rule in self.rules if rule.source_pattern.fullmatch(key)), None)

    def rename(self, key: str) -> str | None:
        """Rename one original name.

        A name that is a target of this table already is returned unchanged, so renaming twice changes nothing.

        Returns:
            `str` or `None`: The target name; `None` for a dropped tensor.

        Raises:
            ConversionError: No rule knows the name.
        """
        rule = self.match(key)
        if rule is not None:
            return rule.forward(key)
        if any(rule.backward(key) is not None for rule in self.rules):
            return key
        raise ConversionError(f"No rule of the {self.name} layout knows the tensor {key!r}.")

    def reverse(self, target: str, part: str = WEIGHT) -> str:
        """The original name of the tensor that fills `part` of `target`.

        Raises:
            ConversionError: No rule of this table fills that part of that target.
        """
        for rule in self.rules:
            if rule.part == part and (key := rule.backward(target)) is not None:
                return key
        raise ConversionError(f"The {self.name} layout has no tensor for the {part} of {target!r}.")

    def retargeted(self, old: str, new: str) -> RuleTable:
        """The same table for a model whose parameters have the prefix `new` instead of `old`."""
        return RuleTable(
            [
                rule if rule.target is None else replace(rule, target=new + rule.target.removeprefix(old))
                for rule in self.rules
            ],
            self.name,
        )

    def apply(self, keys: Iterable[str]) -> KeyMap:
        """Sort a checkpoint's names into targets, dropped ones and unknown ones.

        Raises:
            ConversionError: Two tensors would fill the same part of the same target.
        """
        result, used = KeyMap(), set()
        for key in keys:
            rule = self.match(key)
            if rule is None:
                result.unmatched.append(key)
                continue
            used.add(rule)
            target = rule.forward(key)
            if target is None:
                result.dropped[key] = rule.reason
                continue
            parts = result.targets.setdefault(target, {})
            if rule.part in parts:
                raise ConversionError(
                    f"Both {parts[rule.part]!r} and {key!r} would become {target!r}.",
                    next_step="A checkpoint may hold each tensor once; remove the copy that is not wanted.",
                )
            parts[rule.part] = key
        result.unused_rules = [rule for rule in self.rules if rule not in used and not rule.optional]
        return result
