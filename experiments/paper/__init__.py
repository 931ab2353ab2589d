"""Reproduce KVFlow's evaluation (arXiv 2507.07400), simulated and on this machine."""
