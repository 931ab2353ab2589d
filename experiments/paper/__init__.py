"""KVFlow's evaluation (arXiv 2507.07400), cell by cell, simulated and on this machine."""
