"""Composes engines into a Triton model repository."""
