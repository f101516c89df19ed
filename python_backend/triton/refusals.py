"""Tensors of the contract that this backend cannot honour.

Those that ask for another output are refused with a reason, unless their value asks for nothing. Those that only hint at
speed, or at another kind of model, change no output: they are accepted and ignored. docs/contract.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a tensor is refused, and the values that are no reason to."""

    remedy: str
    neutral: tuple[object, ...] = ()
    """Values that ask for nothing; an empty tensor never does."""


_EXACT_DRAFTS: Final = (
    "drafts are accepted only where the model itself draws the same token, by no other rule; leave it out"
)
_NO_EMBEDDINGS: Final = "this engine takes text or token ids, no embeddings; leave it out"
_NO_IMAGES: Final = "this engine reads text alone; leave it out"
_NO_DISAGGREGATION: Final = "this engine computes prompts itself; leave it out"

REFUSALS: Final[dict[str, Refusal]] = {
    "runtime_top_p_decay": Refusal("top_p does not decay in this engine; send 1.0 or leave it out", neutral=(1.0,)),
    "draft_logits": Refusal(_EXACT_DRAFTS),
    "draft_acceptance_threshold": Refusal(_EXACT_DRAFTS),
    "use_draft_logits": Refusal(_EXACT_DRAFTS, neutral=(False,)),
    "encoder_input_features": Refusal(_NO_EMBEDDINGS),
    "prompt_embedding_table": Refusal(_NO_EMBEDDINGS),
    "prompt_vocab_size": Refusal(_NO_EMBEDDINGS, neutral=(0,)),
    "mrope_rotary_cos_sin": Refusal(_NO_EMBEDDINGS),
    "cross_attention_mask": Refusal(_NO_EMBEDDINGS),
    "skip_cross_attn_blocks": Refusal(_NO_EMBEDDINGS, neutral=(False,)),
    "context_phase_params": Refusal(_NO_DISAGGREGATION),
    "image_input": Refusal(_NO_IMAGES),
    "image_bytes_input": Refusal(_NO_IMAGES),
    "image_url_input": Refusal(_NO_IMAGES, neutral=(b"",)),
    "video_bytes_input": Refusal(_NO_IMAGES),
    "image": Refusal(_NO_IMAGES),
    "embedding_request": Refusal("answers are text, no embeddings; leave it out", neutral=(b"",)),
    "image_url": Refusal(_NO_IMAGES, neutral=(b"",)),
    "lora_path": Refusal("no path is taken from a client; name a registered adapter in lora_name", neutral=(b"",)),
    "sampling_param_best_of": Refusal("of several answers none is chosen here; send 1", neutral=(0, 1)),
    "sampling_param_logits_post_processor_name": Refusal("there are none here; leave it out", neutral=(b"",)),
    "IMAGE_BYTES": Refusal(_NO_IMAGES),
    "IMAGE_URL": Refusal(_NO_IMAGES, neutral=(b"",)),
    "VIDEO_BYTES": Refusal(_NO_IMAGES),
}

_NO_DECAY: Final = "is about a top_p that decays, which none does"
_NO_ENCODER: Final = "is about models with an encoder"
_NO_TABLE: Final = "is about prompt embeddings, of which there are none"
_LOOKAHEAD: Final = "tunes lookahead decoding; here drafts adapt by themselves, and max_draft_tokens bounds them"

HINTS: Final[dict[str, str]] = {
    "pad_id": "outputs are not padded",
    "lora_ckpt_source": "says what a path leads to, and none is taken; what adapters are is seen by itself",
    **dict.fromkeys(("runtime_top_p_min", "runtime_top_p_reset_ids"), _NO_DECAY),
    **dict.fromkeys(("decoder_input_ids", "decoder_input_lengths", "decoder_text_input"), _NO_ENCODER),
    **dict.fromkeys(("encoder_output_lengths", "DECODER_QUERY"), _NO_ENCODER),
    **dict.fromkeys(("prompt_table_extra_ids", "prompt_table_extra_id", "PROMPT_TABLE_EXTRA_ID"), _NO_TABLE),
    "mrope_position_deltas": _NO_TABLE,
    **dict.fromkeys(("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"), _LOOKAHEAD),
}
"""Tensors that are accepted and ignored, and why that changes no output."""


def refuse_unsupported(inputs: Inputs) -> None:
    """Raise InvalidRequest for the first tensor of a row that asks for what this backend lacks."""
    for name, refusal in REFUSALS.items():
        row = inputs.row(name)
        if row is None:
            continue
        values = row.reshape(-1)
        if values.size != 1:
            raise InvalidRequest(name, row.shape, refusal.remedy)
        value = values.tolist()[0]
        if value not in refusal.neutral:
            raise InvalidRequest(name, value, refusal.remedy)
