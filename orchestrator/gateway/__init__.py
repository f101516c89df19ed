"""The OpenAI gateway: HTTP in front, Triton's gRPC behind."""
