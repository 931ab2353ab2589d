"""The documentation, and what generates and links it."""
