"""Workflow-aware decisions: what to evict, offload, prefetch and admit, and when."""
