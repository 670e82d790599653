"""A folder of safetensors, or a seed -> a decoder with weights.

Tensors are copied one at a time into their place, so that loading needs little more memory than the
model. One of several processes reads its parts of them only. This module does not know where a folder
comes from; `resolve` does.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.collective import Collective
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.weights import EMBEDDING_NAME, LM_HEAD_NAME, Slot, empty_weights, named_slots

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_RANDOM_STD = 0.02
# How many names a message lists before it says "and N more".
_NAMES_SHOWN = 3


def load_decoder(
    folder: Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    collective: Collective | None = None,
) -> Decoder:
    """Loads the weights of `folder`, or this process's part of them, converted to `dtype`, onto `device`.
    `collective` is that of the processes that hold the others, None if there are none.

    Raises:
        BaseModelError: there are no safetensors; a file is missing, truncated or unreadable; a tensor is
            missing, unexpected, of a wrong shape, or in a dtype that is none of float32, bfloat16, float16.
    """
    inventory = _inventory(folder)
    weights = empty_weights(config, dtype, device)
    slots = named_slots(weights, config)
    _check_names(inventory, slots, config, folder)
    for file in sorted(set(inventory.values())):
        with _opened(file) as tensors:
            for name in set(tensors.keys()) & slots.keys():
                _fill(slots[name], tensors, name, file)
    if config.tie_word_embeddings and LM_HEAD_NAME in inventory:
        _check_tied_head(inventory[LM_HEAD_NAME], slots[EMBEDDING_NAME])
    return Decoder(config, weights, collective)


def random_decoder(
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    collective: Collective | None = None,
) -> Decoder:
    """A decoder of this shape with random weights: norms are 1, biases 0, the rest is normal.

    The same seed gives the same weights on the same kind of device, however many processes share them.
    """
    weights = empty_weights(config, dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, slot in named_slots(weights, config).items():
        if name.endswith(".bias"):
            slot.target.zero_()
        elif len(slot.shape) == 1:
            slot.target.fill_(1.0)
        else:
            # What other processes have is drawn too: only then all have parts of the same base.
            whole = slot.target if not slot.cut else slot.target.new_empty(slot.shape)
            whole.normal_(std=_RANDOM_STD, generator=generator)
            if slot.cut:
                slot.target.copy_(whole[slot.cut])
    return Decoder(config, weights, collective)


def _inventory(folder: Path) -> dict[str, Path]:
    """Every tensor of the checkpoint and the file that holds it, from the files' headers."""
    inventory: dict[str, Path] = {}
    for file in _weight_files(folder):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safetensors file is no mapping
                if name in inventory:
                    raise BaseModelError(
                        f"{folder}: '{name}' is both in {inventory[name].name} and {file.name}"
                    )
                inventory[name] = file
    return inventory


def _weight_files(folder: Path) -> list[Path]:
    """The single file where there is one, as transformers prefers it, else the files that the index names."""
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    index = folder / _INDEX_FILE
    if not index.is_file():
        raise BaseModelError(_no_weights(folder))
    try:
        names = sorted(
            {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{index}: cannot be read as an index of safetensors; fetch it again") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise BaseModelError(f"{folder}: '{name}', named in {_INDEX_FILE}, is missing; fetch it again")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return (
            f"{folder}: has only pytorch_model.bin weights; convert them to safetensors (load the model with "
            f"transformers and call save_pretrained)"
        )
    return f"{folder}: has no {_SINGLE_FILE} and no {_INDEX_FILE}; fetch the weights, or use --weights random"


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"{file}: cannot be read, perhaps truncated ({error}); fetch it again"
        ) from error


def _read(tensors: safe_open, name: str, file: Path, cut: tuple[slice, ...]) -> Tensor:
    """A tensor of the file, or a part of it: nothing else is read."""
    # One element of the tuple would be taken for the whole tuple.
    tensor: Tensor = (
        tensors.get_slice(name)[cut if len(cut) > 1 else cut[0]]  # type: ignore[no-untyped-call]
        if cut
        else tensors.get_tensor(name)  # type: ignore[no-untyped-call]
    )
    if tensor.dtype not in _DTYPES:
        raise BaseModelError(
            f"{file}: '{name}' is {str(tensor.dtype).removeprefix('torch.')}; only float32, bfloat16 and "
            f"float16 weights are supported"
        )
    return tensor


def _check_names(
    inventory: dict[str, Path], slots: dict[str, Slot], config: DecoderConfig, folder: Path
) -> None:
    if missing := slots.keys() - inventory.keys():
        raise BaseModelError(f"{folder}: the weights lack {_listed(missing)}; fetch the checkpoint again")
    unexpected = {
        name for name in inventory.keys() - slots.keys() if not name.endswith("rotary_emb.inv_freq")
    }
    if config.tie_word_embeddings:
        unexpected.discard(LM_HEAD_NAME)
    if unexpected:
        raise BaseModelError(
            f"{folder}: config.json has no place for the weights {_listed(unexpected)}; check that "
            f"both belong together"
        )


def _fill(slot: Slot, tensors: safe_open, name: str, file: Path) -> None:
    shape = list(tensors.get_slice(name).get_shape())  # type: ignore[no-untyped-call]
    if tuple(shape) != slot.shape:
        raise BaseModelError(
            f"{file}: '{name}' has shape {shape}, config.json asks for {list(slot.shape)}; "
            f"check that both belong together"
        )
    slot.target.copy_(_read(tensors, name, file, slot.cut))


def _check_tied_head(file: Path, embedding: Slot) -> None:
    """Refuses a head that differs from the embedding: some loaders would use it, others would not."""
    with _opened(file) as tensors:
        head = _read(tensors, LM_HEAD_NAME, file, embedding.cut)
    if not torch.equal(head.to(embedding.target.device, embedding.target.dtype), embedding.target):
        raise BaseModelError(
            f"{file}: '{LM_HEAD_NAME}' differs from '{EMBEDDING_NAME}', yet config.json ties them; set "
            f"'tie_word_embeddings' to what the model was trained with"
        )


def _listed(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:_NAMES_SHOWN])
    hidden = len(names) - _NAMES_SHOWN
    return f"{shown} and {hidden} more" if hidden > 0 else shown
