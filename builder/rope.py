"""Rotary frequencies: every scaling rule resolved into `inv_freq` and a factor on cos and sin.

The arithmetic, float32 and in this order, is that of transformers' `modeling_rope_utils`, so that an engine and the
reference agree to the last bit. Papers: RoPE (2104.09864), YaRN (2309.00071), LongRoPE (2402.13753); the llama3 rule
is Meta's, published with Llama 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field

from trierarch.builder.errors import CheckpointError
from trierarch.builder.hf_config import HfConfig
from trierarch.builder.manifest import PositiveInt
from trierarch.builder.validation import validated


class RopeParameters(BaseModel):
    """`rope_parameters` (transformers 5) or `rope_scaling` (4 and before), checked."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = Field(default=None, gt=0)
    partial_rotary_factor: float | None = Field(default=None, gt=0, le=1)
    original_max_position_embeddings: PositiveInt | None = None
    factor: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, gt=0)
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float | None = Field(default=None, gt=0)
    high_freq_factor: float | None = Field(default=None, gt=0)
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """One rotary embedding as the checkpoint describes it."""

    kind: str
    theta: float
    rotary_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    parameters: RopeParameters

    def required(self, key: str) -> float:
        """A number that the scaling rule cannot do without.

        Raises:
            CheckpointError: it is missing.
        """
        value: float | None = getattr(self.parameters, key)
        if value is None:
            raise CheckpointError(
                f"config.json: rope scaling {self.kind!r} lacks {key}; "
                "download the checkpoint again or correct its config.json"
            )
        return value

    def divisors(self, key: str) -> torch.Tensor:
        """A required list of one float32 divisor for each frequency, (rotary_dim / 2).

        Raises:
            CheckpointError: it is missing or of another length.
        """
        values: tuple[float, ...] | None = getattr(self.parameters, key)
        if values is None or len(values) != self.rotary_dim // 2:
            raise CheckpointError(
                f"config.json: rope scaling {self.kind!r}: {key} must list {self.rotary_dim // 2} numbers; "
                "download the checkpoint again or correct its config.json"
            )
        return torch.tensor(values, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Frequencies:
    """A resolved rotary embedding."""

    inv_freq: torch.Tensor
    """(rotary_dim / 2), float32."""
    attention_factor: float


def rope_settings(config: HfConfig, raw: Mapping[str, Any] | None, theta: float) -> RopeSettings:
    """Read the raw parameters of one embedding; None is plain RoPE with base `theta`.

    Raises:
        CheckpointError: a value is out of range.
    """
    given = validated(RopeParameters, raw or {}, "config.json: rope parameters: ")
    kind = given.rope_type or given.type or "default"
    if given.short_factor is not None:
        kind = "longrope"  # Phi-3's first releases called it "su" and "yarn"
    partial = given.partial_rotary_factor or config.partial_rotary_factor or 1.0
    return RopeSettings(
        kind=kind,
        theta=given.rope_theta or theta,
        rotary_dim=int(config.size_of_head * partial),
        max_position_embeddings=config.max_position_embeddings,
        original_max_position_embeddings=config.original_max_position_embeddings
        or given.original_max_position_embeddings
        or config.max_position_embeddings,
        parameters=given,
    )


def frequencies(settings: RopeSettings, max_seq_len: int) -> Frequencies:
    """Resolve `settings` for sequences of at most `max_seq_len` tokens, which only LongRoPE asks.

    Raises:
        CheckpointError: the rule is unknown or lacks a number.
    """
    rule = _RULES.get(settings.kind)
    if rule is None:
        known = ", ".join(sorted(_RULES))
        raise CheckpointError(f"config.json: rope scaling {settings.kind!r} is unknown; known are {known}")
    if settings.rotary_dim < 2 or settings.rotary_dim % 2:
        raise CheckpointError(f"config.json: the rotary dimension is {settings.rotary_dim}: must be even and positive")
    try:
        return rule(settings, max_seq_len)
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"config.json: rope scaling {settings.kind!r} has numbers that cannot be computed with ({error}); "
            "download the checkpoint again or correct its config.json"
        ) from error


def _exponents(settings: RopeSettings) -> torch.Tensor:
    return torch.arange(0, settings.rotary_dim, 2, dtype=torch.int64).float() / settings.rotary_dim


def _default(settings: RopeSettings, max_seq_len: int) -> Frequencies:
    return Frequencies(1.0 / (settings.theta ** _exponents(settings)), 1.0)


def _linear(settings: RopeSettings, max_seq_len: int) -> Frequencies:
    return Frequencies(_default(settings, max_seq_len).inv_freq / settings.required("factor"), 1.0)


def _llama3(settings: RopeSettings, max_seq_len: int) -> Frequencies:
    factor = settings.required("factor")
    low, high = settings.required("low_freq_factor"), settings.required("high_freq_factor")
    original = settings.original_max_position_embeddings
    inv_freq = _default(settings, max_seq_len).inv_freq
    wavelength = 2 * math.pi / inv_freq
    scaled = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    smooth = (original / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    is_between = ~(wavelength < original / high) & ~(wavelength > original / low)
    return Frequencies(torch.where(is_between, smoothed, scaled), 1.0)


def _yarn(settings: RopeSettings, max_seq_len: int) -> Frequencies:
    dim, base, original = settings.rotary_dim, settings.theta, settings.original_max_position_embeddings
    factor = settings.parameters.factor
    if factor is None:
        factor = settings.max_position_embeddings / original

    def turning_dim(num_rotations: float) -> float:
        return dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(base))

    low = turning_dim(settings.parameters.beta_fast or 32)
    high = turning_dim(settings.parameters.beta_slow or 1)
    if settings.parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    powers = base ** (torch.arange(0, dim, 2).float() / dim)
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    extrapolated = 1 - ramp
    inv_freq = 1.0 / (factor * powers) * (1 - extrapolated) + 1.0 / powers * extrapolated
    return Frequencies(inv_freq, _yarn_attention_factor(settings, factor))


def _yarn_attention_factor(settings: RopeSettings, factor: float) -> float:
    given = settings.parameters.attention_factor
    if given is not None:
        return given

    def scale(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, mscale_all_dim = settings.parameters.mscale, settings.parameters.mscale_all_dim
    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


def _longrope(settings: RopeSettings, max_seq_len: int) -> Frequencies:
    original = settings.original_max_position_embeddings
    # The reference switches factors as a sequence grows past `original`, which would change keys already cached: an
    # engine holds one set, by the longest sequence it may be asked for.
    divisors = settings.divisors("long_factor" if max_seq_len > original else "short_factor")
    factor = settings.parameters.factor
    if factor is None:
        factor = settings.max_position_embeddings / original
    attention_factor = settings.parameters.attention_factor
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Frequencies(1.0 / (divisors * settings.theta ** _exponents(settings)), attention_factor)


_RULES: Final[dict[str, Callable[[RopeSettings, int], Frequencies]]] = {
    "default": _default,
    # Dynamic NTK changes nothing up to max_position_embeddings, and an engine's window never exceeds that.
    "dynamic": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
