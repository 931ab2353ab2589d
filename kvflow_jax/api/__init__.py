"""The Python API for notebooks and experiments: ``LLM``, workflow runs, prompts, start-up."""
