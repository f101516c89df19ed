"""Tensors of the contract that this backend cannot honour: refused with a reason, unless their value asks for nothing.

Tensors that only hint at speed or at another kind of model (pad_id, retention_*, lookahead_*, decoder_input_ids, ...)
change no output of a decoder; they are accepted and ignored. So are those of a beam search where there are no beams.
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
    "IMAGE_BYTES": Refusal(_NO_IMAGES),
    "IMAGE_URL": Refusal(_NO_IMAGES, neutral=(b"",)),
    "VIDEO_BYTES": Refusal(_NO_IMAGES),
}


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
