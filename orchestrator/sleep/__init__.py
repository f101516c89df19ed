"""Scale to zero: a Triton that sleeps when nobody asks, and who stays awake in its place."""
