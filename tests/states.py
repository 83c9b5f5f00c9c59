"""Any state, its tensors of any bits, and how two are compared."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw any bits as a tensor: of any dtype, shape and strides, a view of something larger."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    size = torch.empty((), dtype=dtype).element_size()
    count = 2 * math.prod(shape) + 2
    bits = draw(st.binary(min_size=count * size, max_size=count * size))
    if dtype == torch.bool:
        bits = bytes(byte & 1 for byte in bits)
    flat = torch.frombuffer(bytearray(bits), dtype=dtype)
    match draw(st.sampled_from(["begin", "strided", "transposed", "expanded"])):
        case "strided":
            return flat[2:][::2][: math.prod(shape)].reshape(shape)
        case "transposed":
            return (
                flat[: math.prod(shape)]
                .reshape(shape[::-1])
                .permute(tuple(range(len(shape)))[::-1])
            )
        case "expanded":
            return flat[0].expand(shape)
    return flat[: math.prod(shape)].view(shape)


plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(st.characters(codec=None))
)
keys = st.text(max_size=6) | st.integers() | st.sampled_from(["tensor", "parts", "float", "a/b"])
nested = st.recursive(
    plain | tensors(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=3),
    max_leaves=8,
)
states = st.dictionaries(keys, nested, max_size=4)


def same(left: Any, right: Any) -> bool:
    """Compare to the bit, also what is not equal to itself."""
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and (left.dtype, left.shape) == (right.dtype, right.shape)
            and bits_of(left) == bits_of(right)
        )
    if isinstance(left, Mapping):
        return (
            isinstance(right, Mapping)
            and list(left) == list(right)
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return isinstance(right, float) and (repr(left) == repr(right))
    return type(left) is type(right) and left == right


def bits_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let every write beyond a file's first so many bytes fail, by whatever library it is made."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
