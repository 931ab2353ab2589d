"""The engine loop and its thread: scheduler, step in flight, configuration, stats, trace."""
