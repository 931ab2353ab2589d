"""Reasoning of thinking models: how they mark it, and how it is split off their answers."""
