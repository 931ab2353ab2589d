"""What is cached, and where it lives. Knows no model and no HTTP."""

if __name__ == "cache":
    raise ImportError("import kvflow_jax.cache: the folder cache/ is a part of that package")
