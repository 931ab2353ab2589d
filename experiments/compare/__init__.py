"""Compare cache configurations (arms) on a workload, in virtual time."""
