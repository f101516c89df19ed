from __future__ import annotations

import math

import pytest
import torch

from trierarch.python_backend.executors.torch.rope import RotaryEmbedding


@pytest.mark.parametrize("rotary_dim", [8, 4])
def test_rotates_each_pair_by_its_angle(rotary_dim: int) -> None:
    head_dim, half = 8, rotary_dim // 2
    inv_freq = torch.tensor([1.0, 0.5, 0.25, 0.125][:half])
    positions = torch.tensor([0, 3, 100])
    x = torch.randn(3, 2, head_dim)
    rotated = RotaryEmbedding(inv_freq, attention_factor=1.5)(positions, torch.float32)(x)
    for token, position in enumerate(positions.tolist()):
        for head in range(2):
            for element in range(half):
                angle = position * inv_freq[element].item()
                pair = complex(x[token, head, element], x[token, head, element + half])
                expected = 1.5 * pair * complex(math.cos(angle), math.sin(angle))
                assert rotated[token, head, element].item() == pytest.approx(expected.real, abs=1e-5)
                assert rotated[token, head, element + half].item() == pytest.approx(expected.imag, abs=1e-5)
    assert torch.equal(rotated[..., rotary_dim:], x[..., rotary_dim:])
