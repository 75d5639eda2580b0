"""How a system that this package does not have is recognised and converted; see test_systems.py."""

import torch

from reasonseg.conversion.convert import ConversionReport
from reasonseg.conversion.recognition import described
from reasonseg.conversion.rules import Rule, RuleTable


def recognise_seventh(shapes):
    table = RuleTable([Rule("seventh.{rest}", "vlm.{rest}")], "Seventh")
    return described("seventh", "seventh-7b", table, shapes)


def convert_seventh(source, *, out, wing, feathers=3.0, **options):
    print("converting", source, wing, feathers, sorted(options))
    return ConversionReport(out, 7, torch.float32, {"checkpoint": 7}, [])
