"""Adapters: which are known, which are loaded, which take part in a step. Knows no torch and no Triton."""
