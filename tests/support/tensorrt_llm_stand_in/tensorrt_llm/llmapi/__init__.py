"""The LLM API."""

from tensorrt_llm.executor.utils import RequestError

__all__ = ["RequestError"]
