"""Model families, their weights, and attention over the paged KV pool."""

if __name__ == "models":
    raise ImportError("import kvflow_jax.models: the folder models/ is a part of that package")
