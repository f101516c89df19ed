"""Which TensorRT-LLM may run which engine."""

from __future__ import annotations

import pytest

from trierarch.builder.errors import EngineError
from trierarch.builder.manifest import CompiledBy, Flow, TensorRTLLM
from trierarch.builder.tensorrt_llm.compatibility import Installed, check_compatible

HERE = Installed(tensorrt_llm="1.2.1", tensorrt="10.14.1.48", gpu_architectures=("sm_90", "sm_90"))
COMPILED = TensorRTLLM(
    version="1.2",
    flow=Flow.ENGINE,
    model="trt",
    llm_args={},
    compiled_by=CompiledBy(tensorrt_llm="1.2.1", tensorrt="10.14.1.48", cuda="13.0", gpu_architecture="sm_90"),
)
CHECKPOINT = TensorRTLLM(version="1.2", flow=Flow.PYTORCH, model="checkpoint", llm_args={})


def installed(**changes: object) -> Installed:
    return Installed(
        **(
            {
                "tensorrt_llm": HERE.tensorrt_llm,
                "tensorrt": HERE.tensorrt,
                "gpu_architectures": HERE.gpu_architectures,
            }
            | changes
        )  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("record", [COMPILED, CHECKPOINT])
def test_what_it_was_built_for_runs_it(record: TensorRTLLM) -> None:
    check_compatible("e", record, HERE)


@pytest.mark.parametrize(
    "changes",
    [
        {"tensorrt_llm": "1.2.0"},
        {"tensorrt_llm": "1.2.3rc1"},
        {"tensorrt": None},
        {"gpu_architectures": ("sm_120",)},
        {"gpu_architectures": ()},
    ],
)
def test_a_checkpoint_runs_with_every_patch_and_gpu(changes: dict[str, object]) -> None:
    check_compatible("e", CHECKPOINT, installed(**changes))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tensorrt_llm": None}, "which is not installed here"),
        ({"tensorrt_llm": "1.3.0rc26"}, "built for TensorRT-LLM 1.2, and here is 1.3.0rc26"),
        ({"tensorrt_llm": "1.20.0"}, "and here is 1.20.0"),
        ({"tensorrt_llm": "1.2.0"}, "compiled by TensorRT-LLM 1.2.1, and here is 1.2.0"),
        ({"tensorrt": "10.15"}, "compiled by TensorRT 10.14.1.48, and here is 10.15"),
        ({"tensorrt": None}, "and here is none"),
        ({"gpu_architectures": ()}, "no CUDA device"),
        ({"gpu_architectures": ("sm_90", "sm_120")}, "compiled for sm_90, and here is sm_120"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(changes: dict[str, object], said: str) -> None:
    with pytest.raises(EngineError, match="'e'") as caught:
        check_compatible("e", COMPILED, installed(**changes))
    assert said in str(caught.value)
    assert "trierarch build" in str(caught.value) or "serve it" in str(caught.value)


def test_what_was_not_compiled_yet_is_told() -> None:
    with pytest.raises(EngineError, match="nothing was compiled from yet"):
        check_compatible("e", COMPILED.model_copy(update={"compiled_by": None}), HERE)


@pytest.mark.parametrize(
    ("algo", "architecture", "is_fit"),
    [("FP8", "sm_80", False), ("FP8", "sm_89", True), ("NVFP4", "sm_90", False), ("NVFP4", "sm_100", True)],
)
@pytest.mark.parametrize("field", ["quant_algo", "kv_cache_quant_algo"])
def test_a_quantised_model_needs_a_gpu_that_multiplies_it(
    field: str, algo: str, architecture: str, is_fit: bool
) -> None:
    record, here = CHECKPOINT.model_copy(update={field: algo}), installed(gpu_architectures=("sm_120", architecture))
    if is_fit:
        check_compatible("e", record, here)
        return
    with pytest.raises(
        EngineError, match=rf"'e' is quantised to {algo}, which needs sm_\d+ or later, and here is {architecture}"
    ):
        check_compatible("e", record, here)
