"""Data sets, collators and Trainer recipes."""
