"""Who calls: agents, runs and conversations, recognised from prompts that say nothing of them."""
