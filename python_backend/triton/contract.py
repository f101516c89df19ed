"""Triton's tensors by role: the names, types, dims and order of TensorRT-LLM's model repository, and our additions.

Dims leave out the batch dimension: on the wire an `INT32[1]` is (B, 1). The tables are the contract; whether a tensor
is honoured, ignored or refused is decided by `request_parser` and `refusals`. `tensorrt_llm` holds the executor and has
two doors: the contract's token tensors, and the ensemble's text tensors, so that text needs no second model on its
way. Only the standard library is imported here, so that composing a repository costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_BATCH_SIZE: Final = 64
"""Rows one request may carry. How many sequences run together is the engine's business, not Triton's."""


class Role(StrEnum):
    """What a model does for the repository; a model is usually named for its role."""

    TENSORRT_LLM = "tensorrt_llm"
    PREPROCESSING = "preprocessing"
    POSTPROCESSING = "postprocessing"
    TENSORRT_LLM_BLS = "tensorrt_llm_bls"
    ADAPTER = "adapter"
    """One adapter by its name; its model is named for that, and has the role as a parameter."""
    LLMAPI = "llmapi"
    """The tensors of TensorRT-LLM's llmapi model; its model has any name, and the role as a parameter."""
    VLLM = "vllm"
    """Those of Triton's vLLM backend, likewise."""


class DataType(StrEnum):
    """Triton's element types, as its text protocol spells them."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    STRING = "STRING"

    @property
    def in_config(self) -> str:
        """The name model configurations use."""
        return f"TYPE_{self.value}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output."""

    name: str
    dtype: DataType
    dims: tuple[int, ...]
    """Without the batch dimension; -1 is any length."""
    optional: bool = False
    """Inputs only."""


@dataclass(frozen=True, slots=True)
class Contract:
    """A model's face."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    may_decouple: bool
    """Whether one request may have many responses."""
    is_batched: bool = True
    """Whether tensors have a batch dimension before their dims."""


BOOL, UINT8, UINT32, UINT64 = DataType.BOOL, DataType.UINT8, DataType.UINT32, DataType.UINT64
INT32 = DataType.INT32
INT64, FP16, FP32, STRING = DataType.INT64, DataType.FP16, DataType.FP32, DataType.STRING


def _required(dtype: DataType, *dims: int, names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, dims) for name in names.split())


def _optional(dtype: DataType, *dims: int, names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, dims, optional=True) for name in names.split())


# What both doors of tensorrt_llm, the ensemble and tensorrt_llm_bls take alike.
_SHARED = (
    *_optional(INT32, 1, names="num_return_sequences end_id pad_id beam_width min_tokens prompt_vocab_size"),
    *_optional(FP32, 1, names="temperature repetition_penalty presence_penalty frequency_penalty"),
    *_optional(UINT64, 1, names="seed lora_task_id"),
    *_optional(BOOL, 1, names="return_log_probs return_context_logits return_generation_logits return_perf_metrics"),
    *_optional(BOOL, 1, names="exclude_input_in_output return_num_input_tokens return_num_output_tokens"),
    *_optional(FP16, -1, -1, names="prompt_embedding_table lora_weights"),
    *_optional(INT32, -1, 3, names="lora_config"),
    *_optional(STRING, 1, names="guided_decoding_guide_type guided_decoding_guide"),
)

# Ours, on every model that generates.
_ADDITIONS = (
    *_optional(BOOL, 1, names="apply_chat_template return_finish_reason return_stop_reason"),
    *_optional(FP32, 1, names="min_p"),
    *_optional(INT32, 1, names="priority num_log_probs num_prompt_log_probs max_draft_tokens"),
    *_optional(STRING, 1, names="cache_salt lora_name"),
    *_optional(STRING, -1, names="drafters"),
)

# Ours, on the model that holds the executor: what a gateway needs so that it wants neither tokenizer nor template.
_GATEWAY_INPUTS = (
    *_optional(STRING, 1, names="messages"),
    *_optional(INT32, -1, names="logit_bias_ids"),
    *_optional(FP32, -1, names="logit_bias_values"),
    *_optional(BOOL, 1, names="add_special_tokens skip_special_tokens fit_max_tokens return_usage return_token_bytes"),
    *_optional(BOOL, 1, names="tokenize_only describe return_embedding"),
    *_optional(INT64, 1, names="kv_events_since"),
)
_GATEWAY_OUTPUTS = (
    *_required(STRING, -1, names="usage token_bytes description kv_events"),
    *_required(FP32, -1, names="embedding"),
)

_TOKEN_DOOR = (
    *_optional(INT32, -1, names="input_ids draft_input_ids decoder_input_ids"),
    *_optional(INT32, 1, names="input_lengths request_output_len decoder_input_lengths encoder_output_lengths"),
    *_optional(FP16, -1, -1, names="encoder_input_features"),
    *_optional(FP32, -1, -1, names="draft_logits"),
    *_optional(FP32, 1, names="draft_acceptance_threshold runtime_top_p runtime_top_p_min runtime_top_p_decay"),
    *_optional(FP32, 1, names="len_penalty beam_search_diversity_rate"),
    *_optional(INT32, 1, names="runtime_top_k runtime_top_p_reset_ids"),
    *_optional(INT32, 2, -1, names="stop_words_list bad_words_list"),
    *_optional(FP32, -1, names="embedding_bias mrope_rotary_cos_sin"),
    *_optional(BOOL, 1, names="early_stopping stop streaming skip_cross_attn_blocks"),
    *_optional(UINT64, -1, names="prompt_table_extra_ids"),
    *_optional(BOOL, -1, -1, names="cross_attention_mask"),
    *_optional(INT64, 1, names="mrope_position_deltas"),
    *_optional(UINT8, -1, names="context_phase_params"),
    *_optional(INT32, -1, names="retention_token_range_starts retention_token_range_ends"),
    *_optional(INT32, -1, names="retention_token_range_priorities retention_token_range_durations_ms"),
    *_optional(INT32, 1, names="retention_decode_priority retention_decode_duration_ms"),
    *_optional(INT32, 1, names="lookahead_window_size lookahead_ngram_size lookahead_verification_set_size"),
)

# The text tensors of the ensemble that the token door has no equal for.
_TEXT_OPTIONS = (
    *_optional(STRING, 1, names="decoder_text_input"),
    *_optional(STRING, -1, names="bad_words stop_words embedding_bias_words"),
    *_optional(FP32, -1, names="embedding_bias_weights"),
    *_optional(INT32, 1, names="top_k"),
    *_optional(FP32, 1, names="top_p length_penalty"),
    *_optional(BOOL, 1, names="stream"),
    *_optional(UINT64, 1, names="prompt_table_extra_id"),
)
_TEXT_REQUIRED = (*_required(STRING, 1, names="text_input"), *_required(INT32, 1, names="max_tokens"))

_PERF_METRICS = (
    *_required(INT32, 1, names="kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks"),
    *_required(INT64, 1, names="arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns"),
    *_required(FP32, 1, names="acceptance_rate"),
    *_required(INT32, 1, names="total_accepted_draft_tokens total_draft_tokens"),
)
_LOG_PROBS_AND_LOGITS = (
    *_required(FP32, -1, names="cum_log_probs"),
    *_required(FP32, -1, -1, names="output_log_probs context_logits"),
    *_required(FP32, -1, -1, -1, names="generation_logits"),
)
_INDICES = _required(INT32, 1, names="batch_index sequence_index")
_ADDED_OUTPUTS = (
    *_required(INT32, 1, names="num_input_tokens num_output_tokens"),
    *_required(STRING, -1, names="finish_reason stop_reason top_log_probs prompt_log_probs"),
)
_TEXT_OUTPUTS = (
    *_required(STRING, -1, names="text_output"),
    *_LOG_PROBS_AND_LOGITS,
    *_INDICES,
    *_PERF_METRICS,
    *_ADDED_OUTPUTS,
)

TENSORRT_LLM = Contract(
    inputs=(
        *_TOKEN_DOOR,
        *_optional(STRING, 1, names="text_input"),
        *_optional(INT32, 1, names="max_tokens"),
        *_TEXT_OPTIONS,
        *_SHARED,
        *_ADDITIONS,
        *_GATEWAY_INPUTS,
    ),
    # Clients read outputs[0] as output_ids, so it stays first; the text follows the contract's own.
    outputs=(
        *_required(INT32, -1, -1, names="output_ids"),
        *_required(INT32, -1, names="sequence_length"),
        *_LOG_PROBS_AND_LOGITS,
        *_INDICES,
        *_required(UINT8, -1, names="context_phase_params"),
        *_PERF_METRICS,
        *_ADDED_OUTPUTS,
        *_required(STRING, -1, names="text_output"),
        *_GATEWAY_OUTPUTS,
    ),
    may_decouple=True,
)

ENSEMBLE = Contract(
    inputs=(*_TEXT_REQUIRED, *_TEXT_OPTIONS, *_SHARED, *_ADDITIONS),
    outputs=_TEXT_OUTPUTS,
    may_decouple=True,
)

TENSORRT_LLM_BLS = Contract(
    inputs=(
        *_TEXT_REQUIRED,
        *_TEXT_OPTIONS,
        *_optional(FP16, -1, 3, -1, -1, names="image_input"),
        *_optional(UINT8, -1, -1, -1, -1, names="image_bytes_input video_bytes_input"),
        *_optional(STRING, 1, names="image_url_input"),
        *_optional(INT32, 1, names="num_draft_tokens"),
        *_optional(BOOL, 1, names="use_draft_logits"),
        *_SHARED,
        *_ADDITIONS,
    ),
    outputs=_TEXT_OUTPUTS,
    may_decouple=True,
)

# Declared for clients that name them; a decoder of text alone never fills them.
_OF_IMAGES = (
    *_required(FP16, -1, -1, -1, -1, names="PIXEL_VALUES"),
    *_required(INT64, -1, names="ASPECT_RATIO_IDS"),
    *_required(INT64, -1, -1, names="ASPECT_RATIO_MASK"),
    *_required(INT64, -1, -1, -1, names="CROSS_ATTENTION_MASK"),
    *_required(INT64, 2, names="IMAGE_SIZES"),
    *_required(BOOL, 1, names="IS_VIDEO_INPUT"),
    *_required(INT64, -1, names="ATTENTION_MASK"),
    *_required(INT64, 3, names="IMAGE_GRID_THW"),
    *_required(INT32, -1, names="VISION_INPUT_ID"),
)
NEVER_FILLED: Final = frozenset({"context_phase_params", *(tensor.name for tensor in _OF_IMAGES)})

PREPROCESSING = Contract(
    inputs=(
        *_required(STRING, 1, names="QUERY"),
        *_optional(STRING, 1, names="DECODER_QUERY IMAGE_URL"),
        *_optional(UINT8, -1, -1, -1, -1, names="IMAGE_BYTES VIDEO_BYTES"),
        *_required(INT32, 1, names="REQUEST_OUTPUT_LEN"),
        *_optional(STRING, -1, names="BAD_WORDS_DICT STOP_WORDS_DICT EMBEDDING_BIAS_WORDS"),
        *_optional(FP32, -1, names="EMBEDDING_BIAS_WEIGHTS"),
        *_optional(INT32, 1, names="END_ID PAD_ID"),
        *_optional(UINT64, 1, names="PROMPT_TABLE_EXTRA_ID"),
    ),
    outputs=(
        *_required(INT32, -1, names="INPUT_ID"),
        *_required(INT32, 1, names="REQUEST_INPUT_LEN"),
        *_required(INT32, -1, names="DECODER_INPUT_ID"),
        *_required(INT32, 1, names="REQUEST_DECODER_INPUT_LEN"),
        *_required(INT32, 2, -1, names="BAD_WORDS_IDS STOP_WORDS_IDS"),
        *_required(FP32, -1, names="EMBEDDING_BIAS"),
        *_required(INT32, -1, names="REQUEST_OUTPUT_LEN"),
        *_required(INT32, 1, names="OUT_END_ID OUT_PAD_ID"),
        *_required(UINT64, -1, names="OUT_PROMPT_TABLE_EXTRA_IDS"),
        *_OF_IMAGES,
    ),
    may_decouple=False,
)

POSTPROCESSING = Contract(
    inputs=(*_required(INT32, -1, -1, names="TOKENS_BATCH"), *_required(INT32, -1, names="SEQUENCE_LENGTH")),
    outputs=_required(STRING, -1, names="OUTPUT"),
    may_decouple=False,
)

LLMAPI = Contract(
    inputs=(
        *_required(STRING, -1, names="text_input"),
        *_optional(STRING, -1, names="image_url sampling_param_stop"),
        *_optional(BOOL, 1, names="streaming stop return_finish_reason return_stop_reason return_cumulative_logprob"),
        *_optional(BOOL, 1, names="sampling_param_exclude_input_from_output sampling_param_return_perf_metrics"),
        *_optional(INT32, 1, names="sampling_param_best_of sampling_param_top_k sampling_param_max_tokens"),
        *_optional(FP32, 1, names="sampling_param_temperature sampling_param_top_p"),
        *_optional(FP32, 1, names="sampling_param_frequency_penalty sampling_param_presence_penalty"),
        *_optional(UINT64, 1, names="sampling_param_seed lora_id"),
        *_optional(STRING, 1, names="sampling_param_logits_post_processor_name lora_name lora_path lora_ckpt_source"),
    ),
    outputs=(
        *_required(STRING, -1, names="text_output finish_reason stop_reason"),
        *_required(FP32, -1, names="cumulative_logprob"),
        *_required(INT32, -1, names="kv_cache_reused_block kv_cache_missed_block"),
        *_required(INT32, -1, names="kv_cache_alloc_new_blocks kv_cache_alloc_total_blocks"),
        *_required(FP32, -1, names="kv_cache_hit_rate"),
        *_required(INT64, 1, names="arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns"),
        *_required(FP32, 1, names="acceptance_rate"),
        *_required(INT32, 1, names="total_accepted_draft_tokens total_draft_tokens"),
    ),
    may_decouple=True,
    is_batched=False,
)

VLLM = Contract(
    inputs=(
        *_required(STRING, 1, names="text_input"),
        *_optional(STRING, -1, names="image"),
        *_optional(BOOL, 1, names="stream"),
        *_optional(STRING, 1, names="sampling_parameters"),
        *_optional(BOOL, 1, names="exclude_input_in_output return_finish_reason return_cumulative_logprob"),
        *_optional(BOOL, 1, names="return_logprobs return_num_input_tokens return_num_output_tokens"),
        *_optional(STRING, 1, names="embedding_request"),
    ),
    outputs=(
        *_required(STRING, -1, names="text_output finish_reason"),
        *_required(FP32, -1, names="cumulative_logprob"),
        *_required(STRING, -1, names="logprobs"),
        *_required(UINT32, 1, names="num_input_tokens"),
        *_required(UINT32, -1, names="num_output_tokens"),
    ),
    may_decouple=True,
    is_batched=False,
)

CONTRACTS: dict[Role, Contract] = {
    Role.TENSORRT_LLM: TENSORRT_LLM,
    Role.PREPROCESSING: PREPROCESSING,
    Role.POSTPROCESSING: POSTPROCESSING,
    Role.TENSORRT_LLM_BLS: TENSORRT_LLM_BLS,
    Role.ADAPTER: TENSORRT_LLM,
    Role.LLMAPI: LLMAPI,
    Role.VLLM: VLLM,
}
