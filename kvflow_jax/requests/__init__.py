"""Requests: parameters, validation, state, stop strings, outputs."""
