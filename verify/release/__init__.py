"""Releases: one recipe in, verified and signed repositories out, which anybody can check."""
