"""Configurations and models. Every module in this folder is published, flat, beside each checkpoint."""

import transformers  # noqa: F401  # first, as `reasonseg/registration.py` explains
