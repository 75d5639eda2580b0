"""Conversations about images, answers that are read while they are written, and the HTTP server."""
