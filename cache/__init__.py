"""What is cached, and where it lives. Knows no model and no HTTP."""
