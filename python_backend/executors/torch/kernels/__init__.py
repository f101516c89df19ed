"""Kernels for GPUs in Triton's language (the package `triton`, no relation of Triton Inference Server; decisions/0012).

They are imported only where that package is; `operators.py` decides. On a CPU they run under its interpreter, for tests.
"""
