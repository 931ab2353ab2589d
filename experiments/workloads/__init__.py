"""Workloads of agents as data: the paper's, others, traces; all drawn from a seed."""
