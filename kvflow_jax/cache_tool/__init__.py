"""A command that lists, trims and clears the cache folder."""
