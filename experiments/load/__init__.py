"""Load of many clients, honest and hostile, on the HTTP server: ``python -m experiments.load``."""
