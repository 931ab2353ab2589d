"""This engine beside vLLM, llama.cpp and transformers, on the same weights and the same CPU."""
