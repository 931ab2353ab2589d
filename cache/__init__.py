"""KV cache: prefix index, block table, device pool and host tier. Knows no model and no HTTP."""

if __name__ == "cache":
    raise ImportError("import kvflow_jax.cache instead: the folder cache/ is part of that package")
