"""Inputs: one request's arrays read by name as plain Python values, row by row, with errors that name the tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trierarch.python_backend.errors import InvalidRequest
from trierarch.python_backend.triton.word_lists import decode_word_list

Array = NDArray[np.generic]
Value = TypeVar("Value")


class Inputs:
    """The arrays of one row of a request. Absent and zero-size tensors read as None: clients send both for "nothing".

    Every getter raises InvalidRequest when the tensor's type or shape is not what the contract says.
    """

    def __init__(self, arrays: Mapping[str, Array], row: int = 0) -> None:
        """`arrays` map a tensor's name to its array (B, ...); `row` is below B."""
        self._arrays = arrays
        self._row = row

    def __contains__(self, name: str) -> bool:
        """Whether the tensor was sent and holds something."""
        array = self._arrays.get(name)
        return array is not None and array.size > 0

    def row(self, name: str) -> Array | None:
        """This row of a tensor, without its batch dimension."""
        if name not in self:
            return None
        array = self._arrays[name]
        if array.ndim == 0 or array.shape[0] <= self._row:
            raise InvalidRequest(name, array.shape, "its first dimension must be the batch size of the request")
        row: Array = array[self._row]
        return row

    def integer(self, name: str) -> int | None:
        """A scalar of an integer tensor."""
        value = self._scalar(name, "iu", "integer")
        return None if value is None else int(value.item())

    def number(self, name: str) -> float | None:
        """A scalar of a floating point tensor, finite."""
        value = self._scalar(name, "f", "floating point")
        if value is None:
            return None
        # The shortest decimal that is the same float32: 0.7 stays 0.7 in checks and messages.
        number = float(str(value))
        if not math.isfinite(number):
            raise InvalidRequest(name, number, "must be a finite number")
        return number

    def flag(self, name: str) -> bool | None:
        """A scalar of a BOOL tensor."""
        value = self._scalar(name, "b", "BOOL")
        return None if value is None else bool(value)

    def text(self, name: str) -> str | None:
        """A scalar of a STRING tensor."""
        texts = self.texts(name)
        if not texts:
            return None
        if len(texts) > 1:
            raise InvalidRequest(name, len(texts), "takes one string a row")
        return texts[0]

    def texts(self, name: str) -> tuple[str, ...]:
        """All strings of a STRING tensor, decoded from UTF-8."""
        row = self.row(name)
        return () if row is None else tuple(_decode(name, item) for item in row.reshape(-1).tolist())

    def integers(self, name: str) -> tuple[int, ...] | None:
        """All elements of an integer tensor of rank 1, the batch dimension apart."""
        row = self._typed(name, "iu", "integer")
        if row is None:
            return None
        if row.ndim != 1:
            raise InvalidRequest(name, self._arrays[name].shape, "must be of shape (batch, length)")
        return tuple(row.tolist())

    def numbers(self, name: str) -> NDArray[np.float32] | None:
        """A floating point tensor of rank 1, the batch dimension apart."""
        row = self._typed(name, "f", "floating point")
        if row is None:
            return None
        if row.ndim != 1:
            raise InvalidRequest(name, self._arrays[name].shape, "must be of shape (batch, length)")
        return row.astype(np.float32, copy=False)

    def words(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Token sequences in the contract's word-list format (see `word_lists`)."""
        row = self._typed(name, "iu", "integer")
        return () if row is None else decode_word_list(name, row)

    def _typed(self, name: str, kinds: str, wanted: str) -> Array | None:
        row = self.row(name)
        if row is not None and row.dtype.kind not in kinds:
            raise InvalidRequest(name, str(row.dtype), f"must be a tensor of {wanted} elements")
        return row

    def _scalar(self, name: str, kinds: str, wanted: str) -> np.generic | None:
        row = self._typed(name, kinds, wanted)
        if row is None:
            return None
        if row.size != 1:
            raise InvalidRequest(name, self._arrays[name].shape, "takes one value a row: shape (batch, 1)")
        scalar: np.generic = row.reshape(-1)[0]
        return scalar


def batch_size(arrays: Mapping[str, Array]) -> int:
    """Rows of a request: the first dimension that all its tensors share.

    Raises:
        InvalidRequest: no tensor at all, or two that disagree.
    """
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not sizes:
        raise InvalidRequest("text_input", None, "a request needs text_input, or input_ids")
    name, size = next(iter(sizes.items()))
    for other, other_size in sizes.items():
        if other_size != size:
            raise InvalidRequest(other, arrays[other].shape, f"its batch size must be that of {name}, {size}")
    return size


def either(read: Callable[[str], Value | None], inputs: Inputs, token_name: str, text_name: str) -> Value | None:
    """The value of an option that has two names.

    Raises:
        InvalidRequest: both were sent and differ.
    """
    of_tokens, of_text = read(token_name), read(text_name)
    if of_tokens is not None and of_text is not None and of_tokens != of_text:
        raise InvalidRequest(text_name, of_text, f"contradicts {token_name}, which is {of_tokens!r}; send one of them")
    return of_text if of_tokens is None else of_tokens


def _decode(name: str, item: object) -> str:
    if isinstance(item, str):
        return item
    if not isinstance(item, bytes):
        raise InvalidRequest(name, type(item).__name__, "must be a tensor of STRING (BYTES) elements")
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, item, f"must be UTF-8; byte {error.start} is not") from None
