from __future__ import annotations

import pytest

from support.sampling import CpuSamplerOfTensors, OpenSampler, torch_sampler


@pytest.fixture(scope="session", params=[torch_sampler, CpuSamplerOfTensors], ids=["torch", "cpu"])
def open_sampler(request: pytest.FixtureRequest) -> OpenSampler:
    """Every test here holds both samplers."""
    opener: OpenSampler = request.param
    return opener
