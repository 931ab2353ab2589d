"""What is computed: model families, their weights, and attention over the paged pool."""
