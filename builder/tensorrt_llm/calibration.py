"""Quantising by nvidia-modelopt, the library that TensorRT-LLM's own tools use: formats whose scales follow from activations.

A model is read from a Hugging Face folder, run over a text, and written either as a Hugging Face checkpoint again or as a
TensorRT-LLM checkpoint. modelopt tells what it does on standard output and warns about much; none of that is for our user.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from trierarch.builder.errors import CheckpointError, ResourceError
from trierarch.builder.manifest import DType, WeightType
from trierarch.builder.mapping import Mapping as Split
from trierarch.builder.progress import Progress
from trierarch.builder.tensorrt_llm.quantization import Format
from trierarch.builder.weight import TORCH_DTYPES

Windows = Sequence[Sequence[int]]

_PRESETS: Final[Mapping[WeightType, str]] = {
    WeightType.INT8_SQ: "INT8_SMOOTHQUANT_CFG",
    WeightType.INT4_AWQ: "INT4_AWQ_CFG",
    WeightType.FP8: "FP8_DEFAULT_CFG",
    WeightType.NVFP4: "NVFP4_DEFAULT_CFG",
}
"""Format -> modelopt's name for its settings."""
_EXTRA: Final = "install it with: pip install 'trierarch[modelopt]'"


def load_model(folder: Path, dtype: DType) -> Any:
    """The transformers model in a Hugging Face folder, on the GPU where there is one. Its own code is never run.

    Raises:
        CheckpointError: transformers cannot read it.
        ResourceError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ResourceError(
            f"quantising and measuring needs transformers, which is not installed here; {_EXTRA}"
        ) from None
    with _silence():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=TORCH_DTYPES[dtype], local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(f"transformers cannot read the model ({error}); take another checkpoint") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def calibrate(
    model: Any,
    quantization: Format | None,
    block_size: int | None,
    has_fp8_kv: bool,
    windows: Windows,
    progress: Progress,
) -> None:
    """Quantise `model` where it is, with what runs through it when it reads `windows`.

    Raises:
        ResourceError: nvidia-modelopt is not installed.
    """
    try:
        with _silence():  # it warns about what else is not installed
            import modelopt.torch.quantization as mtq
    except ImportError:
        raise ResourceError(f"quantising needs nvidia-modelopt, which is not installed here; {_EXTRA}") from None
    config = _settings(mtq, quantization, block_size, has_fp8_kv)
    progress.stage("calibration", None)

    def run(model: Any) -> None:
        for window in windows:
            model(torch.tensor([window], device=model.device), use_cache=False)

    with _silence(), torch.inference_mode(mode=False), torch.no_grad():
        mtq.quantize(model, config, run)


def export_hf(model: Any, folder: Path) -> None:
    """Write a calibrated model as a Hugging Face checkpoint; `hf_quant_config.json` says how it is quantised."""
    with _silence():
        from modelopt.torch.export import export_hf_checkpoint

        export_hf_checkpoint(model, export_dir=folder)


def export_ranks(
    model: Any, decoder_type: str, dtype: DType, split: Split
) -> Iterator[tuple[int, dict[str, torch.Tensor], dict[str, Any]]]:
    """A calibrated model as a TensorRT-LLM checkpoint: (rank, its tensors, QuantConfig), one after the other."""
    with _silence():
        from modelopt.torch.export.model_config_export import torch_to_tensorrt_llm_checkpoint

        exported = torch_to_tensorrt_llm_checkpoint(
            model, decoder_type, TORCH_DTYPES[dtype], split.tensor_parallel_size, split.pipeline_parallel_size
        )
    while True:
        with _silence():
            found = next(exported, None)
        if found is None:
            return
        config, tensors, quantization = found
        yield int(config["rank"]), dict(tensors), dict(quantization)


def _settings(mtq: Any, quantization: Format | None, block_size: int | None, has_fp8_kv: bool) -> dict[str, Any]:
    kv = list(mtq.FP8_KV_CFG["quant_cfg"]) if has_fp8_kv else []
    if quantization is None:
        return {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *kv], "algorithm": "max"}
    settings: dict[str, Any] = copy.deepcopy(getattr(mtq, _PRESETS[quantization.weights]))
    for entry in settings["quant_cfg"]:
        blocks = (entry.get("cfg") or {}).get("block_sizes")
        if blocks and block_size is not None and -1 in blocks:
            blocks[-1] = block_size
    settings["quant_cfg"] = [*settings["quant_cfg"], *copy.deepcopy(kv)]
    return settings


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Standard error is left alone: our own progress is drawn there meanwhile."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet_libraries():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Neither log lines nor bars of their own."""
    from transformers.utils import logging as transformers_logging

    before, had_bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if had_bars:
            transformers_logging.enable_progress_bar()
