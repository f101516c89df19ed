"""The engine flow, up to 1.2."""

from tensorrt_llm.recorded import is_there

if not is_there("tensorrt_llm._tensorrt_engine.LLM.__init__"):
    raise ImportError("No module named 'tensorrt_llm._tensorrt_engine'")

from tensorrt_llm.llm import EngineLLM as LLM

__all__ = ["LLM"]
