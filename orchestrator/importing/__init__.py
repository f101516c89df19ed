"""Reading a model repository of TensorRT-LLM's backend, and saying what becomes of each of its settings."""
