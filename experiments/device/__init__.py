"""Checks of accelerators, and compilation of the engine's programs for absent ones."""
