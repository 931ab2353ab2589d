"""Execution of a step: interfaces, batch, forward pass, sampler, runner, device memory."""
