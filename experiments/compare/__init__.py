"""Arms side by side on a workload, in virtual time."""
