"""Speculation: who guesses tokens ahead, how far, and what that was worth. No torch, no Triton."""
