"""Coding agents against the server: installed, played once, and what they sent kept as tests."""
