"""The `reasonseg` command. Modules import torch only inside the commands, so `--help` is instant."""

from .app import app, main


__all__ = ["app", "main"]
