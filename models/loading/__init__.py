"""Checkpoints of every form, brought to where their weights are used."""
