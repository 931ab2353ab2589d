"""What runs a step: the interfaces, the batch, the forward pass, the sampler, the runner."""
