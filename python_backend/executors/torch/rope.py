"""Rotary position embedding (Su et al., 2021) in Hugging Face's convention: element j pairs with j + rotary_dim / 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Rotation:
    """The angles of one step's tokens, ready to apply."""

    cos: torch.Tensor  # (num_tokens, 1, rotary_dim)
    sin: torch.Tensor  # (num_tokens, 1, rotary_dim), the first half negated

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate the leading elements of every head. x: (num_tokens, heads, head_dim); the same shape comes back."""
        rotary_dim = self.cos.shape[-1]
        if rotary_dim == x.shape[-1]:
            return _rotate(x, self)
        return torch.cat((_rotate(x[..., :rotary_dim], self), x[..., rotary_dim:]), -1)


class RotaryEmbedding:
    """Positions → rotations."""

    def __init__(self, inv_freq: torch.Tensor, attention_factor: float) -> None:
        """inv_freq: (rotary_dim / 2) float32, radians a token. attention_factor multiplies cos and sin."""
        self._inv_freq = inv_freq
        self._attention_factor = attention_factor

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Angles in float32, their cos and sin in `dtype`. positions: (num_tokens) int64."""
        angles = positions.float()[:, None, None] * self._inv_freq
        cos, sin = angles.cos() * self._attention_factor, angles.sin() * self._attention_factor
        return Rotation(torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype))


def _rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    # Rolling by half swaps the halves; the sign that the first half needs is in `sin`.
    return torch.addcmul(x * rotation.cos, x.roll(x.shape[-1] // 2, -1), rotation.sin)
