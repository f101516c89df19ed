"""The executor over TensorRT-LLM's LLM API, in both of its flows."""
