"""Conversion of original checkpoints into complete Hugging Face repositories."""
