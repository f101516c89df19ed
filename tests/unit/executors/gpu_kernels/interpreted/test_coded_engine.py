"""A whole decoder of quantised matrices over the kernels, and by torch's operators."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from support.coded_matrices import KINDS, coded_matrix
from support.ragged_attention import RaggedCase
from support.random_engine import random_weights, tiny_architecture, tiny_manifest
from trierarch.builder.manifest import EngineManifest
from trierarch.python_backend.executors.torch.eager_model import EagerModel
from trierarch.python_backend.executors.torch.kv_arrays import KvArrays
from trierarch.python_backend.executors.torch.matrix import Matrix
from trierarch.python_backend.executors.torch.operators import Operators

CPU = torch.device("cpu")
CASE = RaggedCase(seed=5, group=2, max_sequences=3, max_length=12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_over_codes_is_that_of_the_reference(kind: str) -> None:
    architecture = tiny_architecture(intermediate_size=64, qkv_bias=True)
    manifest = tiny_manifest(architecture)
    weights: dict[str, Matrix] = dict(random_weights(architecture))
    for name in [one for one in weights if one.endswith(("qkv.weight", "o.weight", "gate_up.weight", "down.weight"))]:
        weights[name] = coded_matrix(kind, *weights[name].shape, seed=len(name))
    found, expected = (logits_of(manifest, weights, one) for one in (Operators.best(manifest, CPU), Operators.eager()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def logits_of(manifest: EngineManifest, weights: dict[str, Matrix], operators: Operators) -> torch.Tensor:
    """Logits of all tokens of a mixed step."""
    with mock.patch.object(Operators, "best", return_value=operators):
        model = EagerModel(manifest, weights, CPU)
    kv = KvArrays(CASE.num_blocks, manifest.architecture, manifest.kv_cache, CPU)
    return model.logits(model.compute(CASE.plan(), kv).hidden)
