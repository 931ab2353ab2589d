"""What is computed: model families, their weights, and attention over the paged pool."""

if __name__ == "models":
    raise ImportError("import kvflow_jax.models: the folder models/ is a part of that package")
