"""The story, end to end: `make demo`."""
