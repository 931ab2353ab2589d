"""The Python API of notebooks and experiments: ``LLM``, workflow runs, prompts, start-up."""
