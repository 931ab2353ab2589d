"""Structured output: grammars that restrict which tokens a request may sample (llguidance)."""
