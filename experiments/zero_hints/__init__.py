"""What agents gain that declare nothing."""
