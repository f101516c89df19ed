"""Who draws the tokens of an engine in the PyTorch flow, and what that release calls it.

1.0 has a switch for TRTLLMSampler, `enable_trtllm_sampler`; 1.1 brought `sampler_type` (its release notes), and 1.3 gives up
TRTLLMSampler and is asked for none. Under speculation each release takes TorchSampler or one of the drafter's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trierarch.builder.config import TokenSampler
from trierarch.builder.errors import ConfigError
from trierarch.builder.manifest import DrafterKind, Flow
from trierarch.builder.tensorrt_llm.releases import Release

SAMPLER_TYPES: Final[Mapping[TokenSampler, str]] = {
    TokenSampler.TRTLLM: "TRTLLMSampler",
    TokenSampler.TORCH: "TorchSampler",
}
"""As `sampler_type` spells them."""
_TORCH_ALONE: Final = ("1.3",)
"""Releases whose TorchSampler does all that TRTLLMSampler did."""


def choose_sampler(
    asked: TokenSampler | None, release: Release, flow: Flow, drafter: DrafterKind | None
) -> TokenSampler:
    """The sampler of an engine; None takes the one that knows more of sampling.

    Raises:
        ConfigError: this release, flow or drafter runs with the other alone.
    """
    if flow is Flow.ENGINE:
        only, why = TokenSampler.TRTLLM, "TensorRT engines have no other than trtllm"
    elif release.name in _TORCH_ALONE:
        only, why = TokenSampler.TORCH, f"TensorRT-LLM {release.name} samples by torch alone"
    elif drafter is not None:
        only, why = TokenSampler.TORCH, f"trtllm takes no guesses, and speculation is {drafter.value}"
    else:
        return asked or TokenSampler.TRTLLM
    if asked not in (None, only):
        raise ConfigError(f"tensorrt_llm_sampler is {asked.value!r}: {why}; leave it out")
    return only
