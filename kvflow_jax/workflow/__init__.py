"""The Agent Step Graph, its runs and the hints of callers, in pure Python."""
