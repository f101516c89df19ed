"""Cached blocks in host memory and on disk: the copies that `kv/offload.py` asks for, and who makes them."""
