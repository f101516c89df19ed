"""Small random heads on hidden states, and what they guess when computed plainly from their checkpoints' tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from support.checkpoints import VOCAB_SIZE, random_model, save_checkpoint

Tensors = dict[str, torch.Tensor]

DRAFT_VOCAB_SIZE = 100
_EAGLE3: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "vocab_size": VOCAB_SIZE,
    "draft_vocab_size": DRAFT_VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 1]},
}


def random_eagle3(
    directory: Path,
    *,
    prefix: str = "midlayer.",
    target_hidden_size: int = 64,
    has_biases: bool = False,
    has_embedding: bool = False,
    has_fc_bias: bool = False,
    **config: Any,
) -> Path:
    """Write a head for `random_checkpoint("llama")`; `config` goes into its config.json, and None takes a key out."""
    merged = {name: value for name, value in {**_EAGLE3, **config}.items() if value is not None}
    hidden, inner = merged["hidden_size"], merged["intermediate_size"]
    if target_hidden_size != hidden:
        merged["target_hidden_size"] = target_hidden_size
    heads, kv_heads = merged["num_attention_heads"], merged["num_key_value_heads"]
    head_dim = merged.get("head_dim", hidden // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, 3 * target_hidden_size),
        f"{prefix}hidden_norm.weight": (hidden,),
        f"{prefix}input_layernorm.weight": (hidden,),
        f"{prefix}post_attention_layernorm.weight": (hidden,),
        f"{prefix}self_attn.q_proj.weight": (heads * head_dim, 2 * hidden),
        f"{prefix}self_attn.k_proj.weight": (kv_heads * head_dim, 2 * hidden),
        f"{prefix}self_attn.v_proj.weight": (kv_heads * head_dim, 2 * hidden),
        f"{prefix}self_attn.o_proj.weight": (hidden, heads * head_dim),
        f"{prefix}mlp.gate_proj.weight": (inner, hidden),
        f"{prefix}mlp.up_proj.weight": (inner, hidden),
        f"{prefix}mlp.down_proj.weight": (hidden, inner),
        "norm.weight": (hidden,),
        "lm_head.weight": (merged.get("draft_vocab_size", merged["vocab_size"]), hidden),
    }
    if has_biases:
        matrices = [name for name in shapes if "_proj." in name]
        shapes |= {name.replace(".weight", ".bias"): shapes[name][:1] for name in matrices}
    if has_embedding:
        shapes["embed_tokens.weight"] = (merged["vocab_size"], hidden)
    if has_fc_bias:
        shapes["fc.bias"] = (hidden,)
    tensors = _random(shapes, seed=5)
    if "draft_vocab_size" in merged:
        ids = torch.randperm(merged["vocab_size"], generator=torch.Generator().manual_seed(6))
        ids = ids[: merged["draft_vocab_size"]].sort().values
        mask = torch.zeros(merged["vocab_size"], dtype=torch.bool)
        mask[ids] = True
        tensors |= {"d2t": ids - torch.arange(len(ids)), "t2d": mask}
    return write_head(directory, merged, tensors)


def read_tensors(directory: Path) -> Tensors:
    """Of a checkpoint of one file, which may be written anew."""
    return {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}


def write_head(directory: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    """Write a checkpoint without a tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors")
    return directory


def random_mimo(directory: Path, **overrides: Any) -> Path:
    """Write a small checkpoint of MiMo, which is a Qwen2 with a multi-token prediction layer; transformers knows no MiMo."""
    model = random_model("qwen2", use_sliding_window=False, **overrides)
    save_checkpoint(model, directory)
    hidden, prefix = model.config.hidden_size, "model.mtp_layers.0."
    tensors = read_tensors(directory)
    layer = {
        name.replace("model.layers.0.", prefix): one.shape for name, one in tensors.items() if ".layers.0." in name
    }
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm")
    shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in layer.items()}
    shapes |= {f"{prefix}{name}.weight": (hidden,) for name in norms}
    shapes[f"{prefix}input_proj.weight"] = (hidden, 2 * hidden)
    save_file(tensors | _random(shapes, seed=7), directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", "num_nextn_predict_layers": 1}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def _random(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensors:
    """Matrices keep activations near 1; norms and biases are far from neutral."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            tensors[name] = 1 + 0.2 * noise
        else:
            tensors[name] = 0.2 * noise if len(shape) == 1 else noise * shape[-1] ** -0.5
    return tensors


class DenseHead:
    """A head computed anew from the first row for each guess: no blocks, no cache, no batch."""

    def __init__(self, head: Path, target: Path) -> None:
        """head: a checkpoint of `random_eagle3`, or the `target` itself where that is one of `random_mimo`."""
        self.config = json.loads((head / "config.json").read_text(encoding="utf-8"))
        self.is_mtp = head == target
        prefix = r"model\.mtp_layers\.0\." if self.is_mtp else r"(model\.)?(midlayer\.|layers\.0\.)?"
        found = load_file(head / "model.safetensors").items()
        self.own = {re.sub(f"^{prefix}", "", name): one for name, one in found if re.match(prefix, name)}
        self.target = _target_model(target)
        rows = (
            self.target.get_input_embeddings().weight if self.is_mtp or "embed_tokens.weight" not in self.own else None
        )
        self.embeddings: torch.Tensor = self.own["embed_tokens.weight"] if rows is None else rows.detach()

    @torch.inference_mode()
    def guess(self, known: list[int], count: int) -> list[int]:
        """The `count` tokens that it expects after `known`."""
        hidden = list(self._fused(known[:-1]))
        tokens = list(known[1:])
        guessed: list[int] = []
        for _ in range(count):
            output = self._outputs(torch.stack(hidden), tokens)[-1]
            guessed.append(self._best(output))
            hidden.append(output)
            tokens.append(guessed[-1])
        return guessed

    def _fused(self, tokens: list[int]) -> torch.Tensor:
        """What each token's row takes of the target's hidden states."""
        states = self._states(tokens)
        if self.is_mtp:
            return states[-1]
        indices = sorted(self.config["eagle_config"]["eagle_aux_hidden_state_layer_ids"])
        both = torch.cat([states[index] for index in indices], 1)
        return functional.linear(both, self.own["fc.weight"], self.own.get("fc.bias"))

    def _states(self, tokens: list[int]) -> list[torch.Tensor]:
        """What each of the target's layers puts out, (n, hidden)."""
        states: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, output: states.append(_first(output).view(len(tokens), -1)))
            for layer in self.target.model.layers
        ]
        self.target.model(torch.tensor([tokens]))
        for hook in hooks:
            hook.remove()
        return states

    def _outputs(self, hidden: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Row p of a guess: hidden state p, or the output in its place, with token p + 1."""
        embedded = self.embeddings[tokens]
        if self.is_mtp:
            embedded = torch.cat((torch.zeros_like(embedded[:1]), embedded[1:]))
            both = torch.cat((self._norm("hidden_layernorm", hidden), self._norm("token_layernorm", embedded)), 1)
            x = self._linear("input_proj", both)
            x = x + self._attend(self._norm("input_layernorm", x))
        else:
            normed = self._norm("hidden_norm", hidden)
            x = normed if self.config.get("norm_before_residual") else hidden
            x = x + self._attend(torch.cat((self._norm("input_layernorm", embedded), normed), 1))
        y = self._norm("post_attention_layernorm", x)
        gated = functional.silu(self._linear("mlp.gate_proj", y)) * self._linear("mlp.up_proj", y)
        x = x + self._linear("mlp.down_proj", gated)
        return self._norm("final_layernorm", x) if self.is_mtp else x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (self._linear(f"self_attn.{name}_proj", x).view(len(x), -1, self._head_dim) for name in "qkv")
        q, k = self._rotated(q), self._rotated(k)
        k, v = (one.repeat_interleave(heads // kv_heads, 1) for one in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * self._head_dim**-0.5
        scores += torch.full((len(x), len(x)), -torch.inf).triu(1)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return self._linear("self_attn.o_proj", mixed.reshape(len(x), -1))

    @property
    def _head_dim(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        parameters = self.config.get("rope_parameters") or {}
        theta = self.config.get("rope_theta") or parameters.get("rope_theta", 10_000.0)
        frequencies = theta ** -(torch.arange(0, self._head_dim, 2) / self._head_dim)
        angles = torch.arange(len(x))[:, None, None] * frequencies
        first, second = x.chunk(2, -1)
        return torch.cat(
            (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1
        )

    def _best(self, output: torch.Tensor) -> int:
        if self.is_mtp:
            return int(self.target.lm_head(output).argmax())
        best = int((self.own["lm_head.weight"] @ self._norm("norm", output)).argmax())
        return best + int(self.own["d2t"][best]) if "d2t" in self.own else best

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.own[f"{name}.weight"], self.config["rms_norm_eps"])

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.own[f"{name}.weight"], self.own.get(f"{name}.bias"))


def _first(output: Any) -> torch.Tensor:
    """A decoder layer's hidden states, which some versions of transformers put into a tuple."""
    state: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return state


def _target_model(checkpoint: Path) -> Any:
    """The target, by transformers. MiMo but for its additional layer is a Qwen2."""
    import transformers

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    kind = "Qwen2" if config["architectures"] == ["MiMoForCausalLM"] else "Llama"
    settings = getattr(transformers, f"{kind}Config")(**{k: v for k, v in config.items() if k != "model_type"})
    settings._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(settings).float().eval()
    tensors = load_file(checkpoint / "model.safetensors")
    model.load_state_dict({name: one for name, one in tensors.items() if "mtp_layers" not in name}, strict=False)
    model.tie_weights()
    return model
