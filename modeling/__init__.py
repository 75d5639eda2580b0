"""Configurations and models. Every module in this folder is published, flat, beside each checkpoint."""
