"""Processors and the pipeline of reasonseg: images and questions in, segments out.

Every module of this folder is published beside each checkpoint. It therefore imports only NumPy, Pillow, torch,
transformers and its own siblings.
"""

import transformers  # noqa: F401  # first, as `reasonseg/registration.py` explains
