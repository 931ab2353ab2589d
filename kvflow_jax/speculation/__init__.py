"""Speculative decoding without a draft model: drafts from finished answers and the own context.

Pure Python and numpy; it knows no request, engine or device.
"""
