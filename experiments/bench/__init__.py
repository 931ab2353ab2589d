"""Benchmarks of this machine: engine, cache, kernels, loading, serving, soak test."""
