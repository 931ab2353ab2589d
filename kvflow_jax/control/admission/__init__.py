"""Admission control: time-slices workflow runs while the cache thrashes."""
