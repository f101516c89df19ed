"""Executors: the loop that runs an engine, and the runners it drives."""
