"""Fields of configurations: their values, their flags and their checks. Imports only ``errors``."""
