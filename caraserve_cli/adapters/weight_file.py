"""The file that holds an adapter's tensors: adapter_model.safetensors, or adapter_model.bin, weights-only.

Shapes and dtypes come without reading the weights, and from safetensors without torch, whose import takes
longer than the headers of thousands of adapters. Knows no names of tensors and no PEFT.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

from caraserve_cli.errors import AdapterError

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAME = "adapter_model.safetensors"
BIN_NAME = "adapter_model.bin"

# A safetensors file begins with the length of its header.
_LENGTH_BYTES = 8

# Safetensors' names of dtypes as torch calls them. Others keep their own, in lower case.
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
}


class TensorHeader(NamedTuple):
    """Shape and dtype of a stored tensor; the dtype as torch names it, in lower case."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """An open weight file.

    `read` returns a tensor that may share memory with the mapped file: copy it before the file closes.
    """

    path: Path
    size_bytes: int
    headers: Mapping[str, TensorHeader]
    read: Callable[[str], torch.Tensor]


class RawHeader(NamedTuple):
    """The header of a safetensors file as it was read, hashed, and the size of the whole file. Of two files
    with equal ones, both are whole or neither is."""

    digest: bytes
    size_bytes: int


def read_raw_header(folder: Path) -> RawHeader | None:
    """What tells files with the same tensors apart from others without parsing; None where there is no
    safetensors file with a header."""
    try:
        with (folder / SAFETENSORS_NAME).open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            num_header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if num_header_bytes > size_bytes:
                return None
            digest = blake2b(file.read(num_header_bytes), digest_size=16).digest()
    except OSError:
        return None
    return RawHeader(digest, size_bytes)


@contextmanager
def open_weight_file(adapter: str, folder: Path, *, headers_only: bool = False) -> Iterator[WeightFile]:
    """Opens the weights in `folder`; .safetensors comes before .bin, as in PEFT.

    With `headers_only`, `read` is not to be called.

    Raises:
        AdapterError: there is no such file, or it is damaged, cut short, or holds more than tensors.
    """
    if (path := folder / SAFETENSORS_NAME).exists():
        with _safetensors(adapter, path, "np" if headers_only else "pt") as file:
            yield file
    elif (path := folder / BIN_NAME).exists():
        yield _bin(adapter, path, "meta" if headers_only else "cpu")
    else:
        raise AdapterError(adapter, f"neither {SAFETENSORS_NAME} nor {BIN_NAME} is in {folder}")


@contextmanager
def _safetensors(adapter: str, path: Path, framework: str) -> Iterator[WeightFile]:
    try:
        size_bytes = path.stat().st_size
        handle = safe_open(path, framework=framework, device="cpu")
    except (SafetensorError, OSError) as error:
        reason = f"{path.name} is damaged or cut short ({_one_line(error)}); copy or save it again"
        raise AdapterError(adapter, reason) from error
    with handle as file:
        headers = {}
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            stored = file.get_slice(name)
            dtype = stored.get_dtype()
            headers[name] = TensorHeader(
                tuple(stored.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype.lower())
            )
        yield WeightFile(path, size_bytes, headers, file.get_tensor)


def _bin(adapter: str, path: Path, device: str) -> WeightFile:
    import torch

    try:
        size_bytes = path.stat().st_size
        # Only torch's zip format can be mapped; files of torch before 1.6 are read whole.
        tensors = torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # A damaged pickle can raise nearly anything.
        reason = (
            f"{path.name} is damaged, cut short, or holds more than tensors; save it as {SAFETENSORS_NAME}"
        )
        raise AdapterError(adapter, reason) from error
    if not isinstance(tensors, dict):
        raise AdapterError(
            adapter, f"{path.name} holds a {type(tensors).__name__} and not a dictionary of tensors"
        )
    headers = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise AdapterError(adapter, f"{path.name} holds {name!r}, which is no tensor; remove it")
        stored_as = tensor.dtype if tensor.layout is torch.strided else tensor.layout
        headers[name] = TensorHeader(tuple(tensor.shape), str(stored_as).removeprefix("torch."))
    return WeightFile(path, size_bytes, headers, tensors.__getitem__)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
