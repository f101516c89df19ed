"""Checkpoint to engine: reads Hugging Face and GGUF checkpoints, writes the engine directory and its EngineManifest."""
