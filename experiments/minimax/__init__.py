"""The comparisons of D-AdaST's paper (arXiv 2406.02939): its rivals, its problems, its figures."""
