"""What runs inside an engine's own environment: a driver each, over the same measurements.

The peers' environments have neither JAX nor this project's packages: modules here import the
standard library, numpy and their one engine.
"""
