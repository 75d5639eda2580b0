"""Conversations about images, and answers that are read while they are written."""
