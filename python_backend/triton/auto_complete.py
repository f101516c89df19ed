"""Completes a model's configuration from its role, so that config.pbtxt need not repeat the contract."""

from __future__ import annotations

from typing import Any

from trierarch.python_backend.triton.contract import CONTRACTS, MAX_BATCH_SIZE
from trierarch.python_backend.triton.model_config import role_of
from trierarch.python_backend.triton.parameters import Parameters


def complete(model: Any) -> Any:
    """Add tensors, batch size and policy to `model`, a pb_utils.ModelConfig; what the file says already stays.

    Raises:
        ConfigError: the model has no role, or a parameter that is unknown or out of range.
    """
    config = model.as_dict()
    Parameters.from_config(config)
    contract = CONTRACTS[role_of(config)]
    if contract.is_batched and config["max_batch_size"] == 0:
        model.set_max_batch_size(MAX_BATCH_SIZE)
    for tensor in contract.inputs:
        model.add_input(
            {
                "name": tensor.name,
                "data_type": tensor.dtype.in_config,
                "dims": list(tensor.dims),
                "optional": tensor.optional,
            }
        )
    for tensor in contract.outputs:
        model.add_output({"name": tensor.name, "data_type": tensor.dtype.in_config, "dims": list(tensor.dims)})
    if contract.may_decouple and "model_transaction_policy" not in config:
        model.set_model_transaction_policy({"decoupled": True})
    return model
