"""A request from the door to its answer: parameters, state, stop strings, outputs."""
