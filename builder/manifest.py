"""EngineManifest: what an engine is, written by the builder and trusted by every other room.

An engine is a directory. `engine.json` is this manifest; beside it lie `weights.safetensors`, the tokenizer
(`tokenizer.json`, `chat_template.jinja` where the checkpoint has one) and any compiled artefacts. Nothing here
imports torch or Triton, so a scheduler, a composer or a Kubernetes renderer can read an engine for free.

Weights, by name (shapes in parentheses; `H` hidden, `D` head_dim, `I` intermediate, `E` experts, `V` vocabulary).
Linear weights are (out_features, in_features). Norm weights are float32 multipliers, with any `1 + w` folded in:

    embed.weight (V, H)
    layers.{i}.attn_norm.weight (H)
    layers.{i}.qkv.weight ((num_heads + 2 num_kv_heads) D, H)     .bias where `qkv_bias`; rows q, then k, then v
    layers.{i}.q_norm.weight (D), layers.{i}.k_norm.weight (D)    where `qk_norm`
    layers.{i}.o.weight (H, num_heads D)                          .bias where `o_bias`
    layers.{i}.post_attn_norm.weight (H)                          where `post_norms`
    layers.{i}.mlp_norm.weight (H)
    layers.{i}.gate_up.weight (2I, H)                             .bias where `mlp_bias`; rows gate, then up
    layers.{i}.down.weight (H, I)                                 .bias where `mlp_bias`
    layers.{i}.post_mlp_norm.weight (H)                           where `post_norms`
    layers.{i}.router.weight (E, H)                               in place of gate_up and down where the layer `is_moe`
    layers.{i}.experts.gate_up.weight (E, 2I, H), layers.{i}.experts.down.weight (E, H, I)
    norm.weight (H)
    lm_head.weight (V, H)                                         absent where `tie_embeddings`
    rope.{k}.inv_freq (rotary_dim / 2)                            float32, one for each of `ropes`

A quantised matrix `X.weight` (out_features, in_features) is stored as two or three tensors in its place. Inputs stand in
groups of GROUP_SIZE; an element is scale * code, plus the group's offset where there is one:

    X.codes    int8: (out_features, in_features) of int8
               int4: (out_features, in_features / 2) of uint8; byte j holds input 2j in its low half, 2j + 1 in its high
    X.scales   (out_features, in_features / GROUP_SIZE) of float16
    X.offsets  likewise; int4 only

Of fp8 an element is scale * code too. A row has one scale for all of its inputs, or a block has one, of as many rows and
inputs as `Quantization.fp8_block` says, but for smaller ones at the ends; for blocks go before rows, experts have their own:

    X.codes    (out_features, in_features) of E4M3
    X.scales   (out_features) of float32, or (out_features / rows, in_features / inputs), both rounded up

Quantised may be qkv, o, gate_up, down (of experts too, with their leading axis), and the matrix that makes the logits:
lm_head, or embed where `tie_embeddings` (as int8 where int8 or int4 is asked for: it is the most sensitive, and look-ups
read it too; with `source`, as the checkpoint has it; with fp8 only where the checkpoint has it so). Biases, norms, routers
and an untied embed never are.

A *head* (`EngineManifest.head`) is an engine of one layer that guesses for another, its target, from the target's own
hidden states. Row p of a step takes the hidden state of position p, h of T elements for each tap, side by side, and the
embedding e of the token at p + 1; its output stands for the hidden state of p + 1 in the row after it. `V` is the
vocabulary it guesses from, `U` the target's; the target's embed is copied, where the head has none of its own. Never
quantised, and there are no kernels for it. In place of the above it has:

    embed.weight (U, H)
    lm_head.weight (V, H), norm.weight (H), rope.{k}.inv_freq     as above; the norm is only of the logits in eagle3
    layers.0.*                                                    as above, but for
    layers.0.qkv.weight (..., 2H)                                 in eagle3: of norms of e, by attn_norm, and of h, side by side
    head.hidden_norm.weight (H)                                   of h
    head.target_ids (V)                                           int64: the target's ids of what is guessed
    head.fc.weight (H, taps T)                                    eagle3: the taps become h. .bias where `fc_bias`
    head.fc.weight (H, 2H), head.token_norm.weight (H)            mtp: norms of h and e, side by side, become the layer's input

Rotary embeddings rotate halves (Hugging Face's convention): element j pairs with j + rotary_dim / 2. The builder
resolves every scaling rule (linear, llama3, yarn, longrope) into `inv_freq` and `attention_factor`, which multiplies
cos and sin.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from trierarch.builder.errors import EngineError

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "engine.json"
WEIGHTS_NAME: Final = "weights.safetensors"
TOKENIZER_NAME: Final = "tokenizer.json"
CHAT_TEMPLATE_NAME: Final = "chat_template.jinja"
ADAPTERS_NAME: Final = "adapters"

GROUP_SIZE: Final = 32
"""Inputs of a quantised matrix that share a scale: llama.cpp's choice for Q4_0, Q4_1 and Q8_0."""

DEFAULT_MAX_DRAFT_TOKENS: Final = 16

PositiveInt = Annotated[int, Field(gt=0)]


class Frozen(BaseModel):
    """A record that cannot change and knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Target(StrEnum):
    """The executor family an engine is built for."""

    TORCH = "torch"
    TENSORRT_LLM = "tensorrt_llm"


class DType(StrEnum):
    """Element type of weights and activations."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def num_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is DType.FLOAT32 else 2


class Pooling(StrEnum):
    """Which states behind the last norm make an embedding of a text; a checkpoint is trained for one of them."""

    LAST = "last"
    """That of the last token."""
    MEAN = "mean"
    """The mean of all tokens'."""


class KvType(StrEnum):
    """Element type of keys and values."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    """Codes of -127 to 127, each row of head_dim with a float32 scale of its own; an element is scale * code."""
    FP8 = "fp8"
    """Numbers of E4M3, each row of head_dim with a float32 scale of its own, as of INT8; TensorRT-LLM has its own scales."""

    @property
    def is_quantized(self) -> bool:
        """Whether elements are codes."""
        return self in (KvType.INT8, KvType.FP8)

    @property
    def row_scale_bytes(self) -> int:
        """Bytes that the scale of one row takes; 0 where there is none."""
        return 4 if self.is_quantized else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of one element."""
        return 1 if self.is_quantized else DType(self).num_bytes


class WeightType(StrEnum):
    """How quantised weights are asked for."""

    INT8 = "int8"
    INT4 = "int4"
    SOURCE = "source"
    """As the checkpoint has them: Q8_0 as int8, Q4_0, Q4_1, GPTQ and AWQ as int4, FP8 as fp8, the rest unquantised."""
    FP8 = "fp8"
    """E4M3, the logits' matrix left as it is; what is E4M3 in the checkpoint, as it has it. For TensorRT-LLM as its package
    does it."""
    NVFP4 = "nvfp4"
    """This and the following are TensorRT-LLM's alone (builder/tensorrt_llm/quantization.py)."""
    INT4_AWQ = "int4_awq"
    INT8_SQ = "int8_sq"


class Activation(StrEnum):
    """Gate activation of the gated MLP."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


class Rope(Frozen):
    """One rotary embedding; its frequencies are the weight `rope.{k}.inv_freq`."""

    rotary_dim: PositiveInt
    """Leading elements of each head that are rotated."""
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn, longrope)."""


class Layer(Frozen):
    """What differs from layer to layer."""

    window: PositiveInt | None = None
    """Attention reaches back this many tokens, the current one included; None is all of them."""
    rope: int | None = 0
    """Index into `Architecture.ropes`; None leaves positions out (SmolLM3's NoPE layers)."""
    is_moe: bool = False


class Moe(Frozen):
    """Mixture of experts: softmax over all experts, the top `experts_per_token` are summed by weight."""

    num_experts: PositiveInt
    experts_per_token: PositiveInt
    intermediate_size: PositiveInt
    normalize_top_k: bool
    """Whether the chosen experts' weights are scaled to sum to 1."""


class Architecture(Frozen):
    """The decoder, as data: one model class runs every family."""

    family: str
    """Hugging Face architecture the checkpoint named, such as LlamaForCausalLM."""
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    layers: tuple[Layer, ...] = Field(min_length=1)
    ropes: tuple[Rope, ...]
    activation: Activation = Activation.SILU
    norm_eps: float = Field(gt=0)
    attention_scale: float = Field(gt=0)
    """Multiplies q·k (usually head_dim ** -0.5)."""
    attention_softcap: float | None = None
    """s becomes cap·tanh(s / cap) before the mask (Gemma 2)."""
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    """Multiplies embeddings (Gemma), rounded to the engine's dtype first as the reference does."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before rope."""
    post_norms: bool = False
    """RMSNorm on the outputs of attention and MLP before the residual is added (Gemma)."""
    tie_embeddings: bool
    moe: Moe | None = None
    max_position_embeddings: PositiveInt

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    def may_quantize(self, name: str) -> bool:
        """Whether a weight, by its name above, may be stored as codes."""
        if name in ("embed.weight", "lm_head.weight"):
            return (name == "embed.weight") is self.tie_embeddings
        return name.endswith((".qkv.weight", ".o.weight", ".gate_up.weight", ".down.weight"))

    def kv_bytes_per_token(self, dtype: KvType, has_row_scales: bool = True) -> int:
        """Bytes of keys and values that one token holds over all layers, scales of rows included where it has any."""
        row_bytes = self.head_dim * dtype.num_bytes + (dtype.row_scale_bytes if has_row_scales else 0)
        return 2 * self.num_layers * self.num_kv_heads * row_bytes


class Limits(Frozen):
    """Most the engine's executor takes; requests beyond them are the caller's error."""

    max_batch_size: PositiveInt = 64
    """Sequences running in one step."""
    max_seq_len: PositiveInt
    """Prompt and output tokens of one sequence."""
    max_num_tokens: PositiveInt = 512
    """Token budget of one step; longer prompts are computed in chunks."""
    max_queue_size: PositiveInt = 256
    """Requests waiting; one more is refused at once."""


class KvCache(Frozen):
    """How keys and values are stored. Capacity: `num_bytes` if given, else `memory_fraction` of free memory at load."""

    dtype: KvType
    block_size: PositiveInt = 16
    """Tokens in one block."""
    num_bytes: PositiveInt | None = None
    memory_fraction: float = Field(default=0.2, gt=0, le=0.95)
    bytes_per_token: PositiveInt
    enable_prefix_caching: bool = True


class Tokens(Frozen):
    """Special token ids."""

    bos: int | None
    eos: tuple[int, ...]
    """Any of these ends a sequence."""
    pad: int
    add_bos: bool
    """Whether encoding plain text prepends `bos` (the tokenizer file does it itself; recorded for inspection)."""


class Accuracy(Frozen):
    """What quantization cost, measured on a text by teacher forcing against the unquantised model."""

    text: str
    """Name of the text."""
    num_tokens: PositiveInt
    """Tokens that were predicted."""
    perplexity: float = Field(gt=0)
    reference_perplexity: float = Field(gt=0)
    greedy_agreement: float = Field(ge=0, le=1)
    """Share of positions where both models find the same token likeliest."""
    mean_kl: float = Field(ge=0)
    """Of KL(reference || quantised) over the positions, in nats."""

    @property
    def perplexity_increase(self) -> float:
        """Relative: 0.02 is 2 % more."""
        return self.perplexity / self.reference_perplexity - 1


class Quantization(Frozen):
    """How the weights are quantised."""

    weights: WeightType
    num_int8: int = Field(default=0, ge=0)
    """Matrices stored as int8; so with the next three, of all that may be quantised."""
    num_int4: int = Field(default=0, ge=0)
    num_fp8: int = Field(default=0, ge=0)
    num_unquantized: int = Field(default=0, ge=0)
    fp8_block: tuple[PositiveInt, PositiveInt] | None = None
    """Rows and inputs that share a scale, of fp8 matrices whose scales come in blocks; None where none do."""


class Parallel(Frozen):
    """Over how many GPUs of one machine torch splits an engine. Its weights are the same whatever that is."""

    tensor_parallel_size: PositiveInt
    """Share each layer."""
    pipeline_parallel_size: PositiveInt
    """Groups of them that share the layers out."""


class Lora(Frozen):
    """Adapters (builder/adapter.py) that the engine's executor takes."""

    max_rank: PositiveInt = 64
    """Of any piece of any adapter."""
    max_adapters: PositiveInt = 16
    """Different adapters in one step: slots. Any number may be registered."""
    host_bytes: PositiveInt = 1 << 30
    """Of loaded adapters in memory; the least recently used go first."""


class DrafterKind(StrEnum):
    """Who guesses tokens ahead."""

    PROMPT_LOOKUP = "prompt_lookup"
    """What followed the same words earlier in the prompt or the answer."""
    SUFFIX = "suffix"
    """The same, over answers to earlier requests of the same tenant too (SuffixDecoding, arXiv 2411.04975)."""
    DRAFT_MODEL = "draft_model"
    """A smaller or more quantised engine of the same vocabulary."""
    EAGLE3 = "eagle3"
    """A head on the model's own hidden states (arXiv 2503.01840)."""
    MTP = "mtp"
    """The checkpoint's own multi-token prediction layers."""

    @property
    def is_head(self) -> bool:
        """Whether it reads the model's hidden states."""
        return self in (DrafterKind.EAGLE3, DrafterKind.MTP)

    @property
    def has_engine(self) -> bool:
        """Whether it runs an engine of its own, `Speculation.draft_engine`. An engine holds one at most."""
        return self.is_head or self is DrafterKind.DRAFT_MODEL


class Head(Frozen):
    """What makes an engine a head, and whose."""

    kind: DrafterKind
    """One that `is_head`."""
    taps: tuple[PositiveInt, ...] = Field(min_length=1)
    """It reads the hidden state after so many layers of the target, ascending; no norm is applied to it before."""
    target_hidden_size: PositiveInt
    target_vocab_size: PositiveInt
    fc_bias: bool = False
    norm_before_residual: bool = False
    """EAGLE-3: whether the normalised hidden state is what attention is added to."""

    def qkv_inputs(self, hidden_size: int) -> int:
        """Elements that qkv maps from."""
        return 2 * hidden_size if self.kind is DrafterKind.EAGLE3 else hidden_size

    @property
    def fc_inputs(self) -> int:
        """Elements that fc maps from; in mtp both hidden sizes are the same."""
        count = len(self.taps) if self.kind is DrafterKind.EAGLE3 else 2
        return count * self.target_hidden_size


class Speculation(Frozen):
    """How tokens are guessed ahead. Whatever is guessed, what is drawn stays the same."""

    drafters: tuple[DrafterKind, ...] = Field(min_length=1)
    """Those that may be asked; of several, each step takes the more promising guess."""
    max_draft_tokens: PositiveInt = DEFAULT_MAX_DRAFT_TOKENS
    """Guessed for one sequence in one step at most."""
    history_bytes: int = Field(default=32 << 20, ge=0)
    """Kept of earlier answers, all tenants together; the oldest go first."""
    draft_engine: str | None = None
    """Folder, relative to the engine, of the engine that a drafter which `has_engine` runs. It has the engine's limits and
    block size, its KV budget buys as many blocks, and it has no tokenizer of its own; that of `draft_model` has the
    engine's vocabulary size, the others have a `head`."""


class Flow(StrEnum):
    """How TensorRT-LLM runs a model."""

    ENGINE = "engine"
    """A compiled TensorRT engine; TensorRT-LLM 1.0 to 1.2."""
    PYTORCH = "pytorch"
    """A Hugging Face checkpoint, loaded as it is; the only way from 1.3 on."""


class CompiledBy(Frozen):
    """What compiled a TensorRT engine, which runs with nothing else."""

    tensorrt_llm: str
    tensorrt: str
    cuda: str
    gpu_architecture: str
    """Such as sm_90."""


class TensorRTLLM(Frozen):
    """What the TensorRT-LLM executor opens an engine with."""

    version: str = Field(pattern=r"^[0-9]+\.[0-9]+$")
    """Release whose names `llm_args` are in, such as 1.2."""
    flow: Flow
    model: str
    """Folder, relative to the engine, that `LLM(model=...)` is given."""
    llm_args: dict[str, JsonValue]
    """The other keyword arguments of `LLM`, configuration classes as objects of their fields; not the parallel sizes, which
    are below. `speculative_config.decoding_type` selects its class. Paths in it (`speculative_config.speculative_model_dir`)
    are relative to the engine."""
    tensor_parallel_size: PositiveInt = 1
    pipeline_parallel_size: PositiveInt = 1
    quant_algo: str | None = None
    """As TensorRT-LLM's QuantAlgo spells it."""
    kv_cache_quant_algo: str | None = None
    compiled_by: CompiledBy | None = None
    """None in the PyTorch flow, and in an engine flow's checkpoint that is still to be compiled."""
    checkpoint: str | None = None
    """Engine flow: folder, relative to the engine, of the checkpoint that is compiled. It is `model` until that is done."""
    build_config: dict[str, JsonValue] | None = None
    """Engine flow: fields of TensorRT-LLM's BuildConfig that the checkpoint is compiled with."""


class BuiltWith(Frozen):
    """Versions that wrote the engine."""

    trierarch: str
    torch: str


class Requires(Frozen):
    """What the machine must have; checked before weights are read."""

    cpu_flags: tuple[str, ...] = ()
    """Flags as /proc/cpuinfo names them; empty for an engine that runs on any CPU."""
    device: str = "any"
    """any, cpu, or a CUDA architecture such as sm_90."""


class FileDigest(Frozen):
    """Size and SHA-256 of one engine file."""

    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class EngineManifest(Frozen):
    """The contract between the builder and everything that runs, composes or deploys an engine."""

    schema_version: int = SCHEMA_VERSION
    name: str
    target: Target
    built_with: BuiltWith
    requires: Requires = Requires()
    source: str
    """Base name of the checkpoint or its hub id, for people."""
    source_quantization: str | None = None
    """What most of the weights came in: a GGUF tensor type, or FP8 or INT4 and what has a scale."""
    architecture: Architecture
    dtype: DType
    """Of weights and activations."""
    quantization: Quantization | None = None
    """Of the weights; None where all are of `dtype`, and where they are as `tensorrt_llm.quant_algo` says."""
    accuracy: Accuracy | None = None
    """What quantised weights, keys and values cost; None where nothing is, where the user asked not to measure it, and
    in a draft, whose guesses are verified."""
    limits: Limits
    kv_cache: KvCache
    tokens: Tokens
    parallel: Parallel | None = None
    """Of the torch executor; None computes in one process. A draft computes whole, beside the first part."""
    lora: Lora | None = None
    """None takes no adapters. Those the engine brings along are `adapters/NAME.safetensors` among `files`."""
    speculation: Speculation | None = None
    """None never guesses."""
    head: Head | None = None
    """Of an engine that guesses for another from its hidden states, and computes nothing by itself."""
    tensorrt_llm: TensorRTLLM | None = None
    """Of an engine whose target is TensorRT-LLM."""
    pooling: Pooling | None = None
    """None makes no embeddings."""
    kernels: str | None = None
    """Compiled library among `files` that runs this model on the CPU; None runs eagerly."""
    files: dict[str, FileDigest]
    """Path relative to the engine -> digest; every file but engine.json."""

    @property
    def is_quantized(self) -> bool:
        """Whether weights, or keys and values, are of fewer bits than `dtype`."""
        by_tensorrt_llm = self.tensorrt_llm is not None and self.tensorrt_llm.quant_algo is not None
        return self.quantization is not None or by_tensorrt_llm or self.kv_cache.dtype.is_quantized

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's canonical JSON: the engine's identity, since it covers every file's digest."""
        import hashlib

        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two-space indent, final newline. Equal engines give equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"

    def load_draft(self, engine: Path) -> EngineManifest | None:
        """The manifest of the draft of `engine`, whose own this is; None where it has no draft.

        Raises:
            EngineError: as `load`.
        """
        folder = None if self.speculation is None else self.speculation.draft_engine
        return None if folder is None else EngineManifest.load(engine / folder)

    @classmethod
    def load(cls, engine: Path) -> EngineManifest:
        """Read `engine/engine.json`.

        Raises:
            EngineError: not an engine, unreadable, of another schema version, or with unknown or missing keys.
        """
        path = engine / MANIFEST_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise EngineError(
                f"{engine} is not an engine: it has no {MANIFEST_NAME}; build one with: trierarch build"
            ) from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise EngineError(f"{path} cannot be read ({error}); rebuild the engine with: trierarch build") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise EngineError(
                f"{path}: schema_version is {version!r}, this Trierarch reads {SCHEMA_VERSION}; "
                "rebuild the engine with this version: trierarch build"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise EngineError(f"{path}: {field}: {first['msg']}; rebuild the engine with: trierarch build") from error
