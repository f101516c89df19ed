"""The stand-in's face. Importing it touches no device, as the library's does not."""

from tensorrt_llm.llm import TorchLLM as LLM
from tensorrt_llm.recorded import VERSION as __version__
from tensorrt_llm.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]
