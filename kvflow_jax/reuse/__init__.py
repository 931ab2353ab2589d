"""Learned order of agents: which calls next, how likely, and how soon. Pure Python and numpy.

A predictor learns from the calls of one tenant, and knows no request, engine or cache.
"""
