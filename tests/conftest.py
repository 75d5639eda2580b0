"""Settings every test shares."""

import os


# Before torch and transformers are imported: no test may reach the network, and two workers must not fight over cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys

import pytest


@pytest.fixture(autouse=True)
def no_class_exists_twice():
    """`modeling` imported beside `reasonseg.modeling` would define every class a second time."""
    yield
    leaked = sorted({"modeling", "processing", "conversion", "training", "evaluation"} & sys.modules.keys())
    assert not leaked, f"Imported by a bare name: {leaked}. Write `from reasonseg.{leaked[0]} import ...`."
