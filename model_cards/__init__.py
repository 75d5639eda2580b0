"""Model cards: one template, the values of each system and of each published checkpoint. No code."""
