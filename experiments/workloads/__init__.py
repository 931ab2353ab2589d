"""Agent workloads as data: the paper's, others and traces, all drawn from a seed."""
