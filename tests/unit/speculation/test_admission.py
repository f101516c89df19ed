from __future__ import annotations

import pytest

from trierarch.builder.manifest import DrafterKind, Speculation
from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.request import SpeculationParams
from trierarch.python_backend.speculation.admission import check_drafters

BUILT = Speculation(drafters=(DrafterKind.PROMPT_LOOKUP, DrafterKind.SUFFIX))


@pytest.mark.parametrize("built", [None, BUILT])
@pytest.mark.parametrize(
    "params",
    [
        SpeculationParams(),
        SpeculationParams(max_draft_tokens=0),
        SpeculationParams(max_draft_tokens=100),
        SpeculationParams(draft_token_ids=(1, 2)),
    ],
)
def test_only_named_drafters_can_be_missing(params: SpeculationParams, built: Speculation | None) -> None:
    check_drafters(params, built)


def test_a_drafter_that_the_engine_has_is_admitted() -> None:
    check_drafters(SpeculationParams(drafters=(DrafterKind.SUFFIX,)), BUILT)


@pytest.mark.parametrize(
    ("built", "says"),
    [
        (
            BUILT,
            "drafters is 'eagle3': this engine was built with --speculation prompt_lookup,suffix; name some of these",
        ),
        (None, "drafters is 'suffix': this engine was built without --speculation; leave it out"),
    ],
)
def test_a_drafter_that_the_engine_lacks_is_refused_with_the_reason(built: Speculation | None, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_drafters(SpeculationParams(drafters=(DrafterKind.SUFFIX, DrafterKind.EAGLE3)), built)

    assert str(caught.value).startswith(says)
