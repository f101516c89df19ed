"""The CPU executor: an engine's own compiled kernels, with nothing but numpy around them. Imports no torch."""
