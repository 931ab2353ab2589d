"""Robust training of a small network by 20 nodes, most of which see two digits only."""
