"""The Agent Step Graph, the state of its runs, and the hints of requests, in pure Python."""
