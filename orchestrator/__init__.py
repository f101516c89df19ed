"""The `trierarch` command: build, compose, serve, generate, inspect, doctor."""
