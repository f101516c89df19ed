"""Deciding which beams of a search live on; no torch, no Triton, no executor."""
