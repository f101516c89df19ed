"""The Triton Python backend: requests to tokens. Rooms that decide, compute and translate never reach into each other."""
