"""Checks and programs of accelerators, and the fit of a hardware profile."""
