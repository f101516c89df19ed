"""Engines for TensorRT-LLM: what it compiles (1.0 to 1.2) or loads as it is (1.3 and later), written without it."""
