"""Compiled decoders: what `builder/compile.py` stored in the engine, behind the interface of the eager `Decoder`."""
