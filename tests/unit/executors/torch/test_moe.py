from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trierarch.builder.manifest import Activation, Moe
from trierarch.python_backend.executors.torch.adaptable_linear import AdaptableLinear
from trierarch.python_backend.executors.torch.gate import EagerGate
from trierarch.python_backend.executors.torch.linear import PlainLinear
from trierarch.python_backend.executors.torch.mlp import GatedMlp
from trierarch.python_backend.executors.torch.moe import LoopedExperts, MoeMlp


@pytest.mark.parametrize("normalize_top_k", [True, False])
def test_is_the_weighted_sum_of_the_best_experts_token_by_token(normalize_top_k: bool) -> None:
    torch.manual_seed(3)
    hidden, inner, num_experts, num_chosen = 6, 5, 7, 3
    router = torch.randn(num_experts, hidden)
    gate_up, down = torch.randn(num_experts, 2 * inner, hidden), torch.randn(num_experts, hidden, inner)
    experts = [
        GatedMlp(AdaptableLinear("one", one), AdaptableLinear("other", other), EagerGate(Activation.SILU))
        for one, other in zip(gate_up, down, strict=True)
    ]
    moe = Moe(
        num_experts=num_experts,
        experts_per_token=num_chosen,
        intermediate_size=inner,
        normalize_top_k=normalize_top_k,
    )
    x = torch.randn(11, hidden)
    result = MoeMlp(PlainLinear(router), LoopedExperts(experts), moe)(x)
    for token, mixed in zip(x, result, strict=True):
        scores = torch.softmax(router @ token, 0)
        best = scores.argsort(descending=True)[:num_chosen].tolist()
        total = sum(scores[index] for index in best) if normalize_top_k else 1.0
        expected = torch.zeros(hidden)
        for index in best:
            gate, up = (gate_up[index] @ token).chunk(2)
            expected += scores[index] / total * (down[index] @ (functional.silu(gate) * up))
        torch.testing.assert_close(mixed, expected)
