"""Guides for engines whose outputs can be read (`readable_engine`), and whether an answer keeps to one."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np

from support.asking import Stream
from support.tokenizers import small_tokenizer
from trierarch.python_backend.request import FinishReason, Guide, GuideKind

TOKENIZER = small_tokenizer("byte_level")
(END,) = TOKENIZER.encode("<|im_end|>")
REGEX = Guide(GuideKind.REGEX, r"(the |quick |[0-9]{2}){3,5}\.")
SCHEMA_OBEYED = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["the", "stop"]}},
    "required": ["a", "b"],
}
SCHEMA = Guide(GuideKind.JSON_SCHEMA, json.dumps(SCHEMA_OBEYED))
EBNF = Guide(GuideKind.EBNF, 'root ::= "(" root ")" | [a-c]{1,2}')

NO_SPACES = {i: -np.inf for i in range(TOKENIZER.vocab_size) if TOKENIZER.bytes.of(i).isspace()}
"""JSON may have any number of spaces, and a random model likes them."""


def text_of(stream: Stream) -> str:
    """What it says."""
    return TOKENIZER.decode(stream.token_ids)


def obeys(stream: Stream, guide: Guide) -> bool:
    """Whether an output that ended does, and one that was cut off could have gone on."""
    if stream.error is not None:
        return False
    if stream.reason is FinishReason.LENGTH:
        return True
    if guide is SCHEMA:
        return bool(jsonschema.Draft202012Validator(SCHEMA_OBEYED).is_valid(json.loads(text_of(stream))))
    pattern = guide.text if guide is REGEX else r"\(*[a-c]{1,2}\)*"
    return re.fullmatch(pattern, text_of(stream)) is not None and text_of(stream).count("(") == text_of(stream).count(
        ")"
    )
