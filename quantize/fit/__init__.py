"""Fit: which artifact runs on a GPU, with what context, and the command to start it."""
