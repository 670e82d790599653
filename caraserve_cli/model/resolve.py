"""What `--base` means: a local folder, a short name, or a model of the Hugging Face hub.

Finds the config, and the folder that holds the files; downloads what is not there. Does not load weights.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the HTTP library's own
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from caraserve_cli.errors import BaseModelError
from caraserve_cli.model.config import load_decoder_config, parse_decoder_config
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.shapes import KNOWN_BASES

Weights: TypeAlias = Literal["checkpoint", "random"]

_CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
_WEIGHT_FILES = ("*.safetensors",)
# Second copies of the weights in other layouts, and everything in subfolders.
_UNWANTED_FILES = ("consolidated*", "*/*")
_NUM_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBase:
    """A base model that was found.

    Attributes:
        name: what the user called it.
        folder: where its files are; None for a short name with random weights, which needs none.
    """

    name: str
    config: DecoderConfig
    folder: Path | None


def resolve_base(base: str, weights: Weights) -> ResolvedBase:
    """Finds the base model that the user named.

    Args:
        base: a folder (which wins if it exists), a short name of `shapes`, or a hub id.
        weights: with "random", a short name needs no download, and a hub id only its small files.

    Raises:
        BaseModelError: there is no such model, it cannot be fetched, or its config cannot be honoured.
    """
    folder = Path(base)
    if folder.is_dir():
        return ResolvedBase(name=base, config=load_decoder_config(folder), folder=folder)
    known = KNOWN_BASES.get(base.lower())
    if known is not None and weights == "random":
        config = parse_decoder_config(known.config, where=f"base model {base}")
        return ResolvedBase(name=base, config=config, folder=None)
    if known is None:
        _check_hub_id(base, folder)
    downloaded = _download(base if known is None else known.hub_id, weights)
    return ResolvedBase(name=base, config=load_decoder_config(downloaded), folder=downloaded)


def _check_hub_id(base: str, folder: Path) -> None:
    """Refuses what can be neither a folder nor a hub id, saying which of them was meant."""
    if folder.exists():
        raise BaseModelError(f"base model '{base}' is a file; give the folder that holds config.json")
    if base.startswith((".", "/", "~")) or base.endswith("/") or "\\" in base or base.count("/") > 1:
        raise BaseModelError(f"base model folder '{base}' does not exist; check the path")
    if "/" not in base:
        close = difflib.get_close_matches(base.lower(), KNOWN_BASES, n=_NUM_SUGGESTIONS)
        names = close or list(KNOWN_BASES)
        question = "did you mean" if close else "the short names are"
        raise BaseModelError(
            f"base model '{base}' is no folder and no short name; {question} {', '.join(names)} "
            f"(a hub id is written OWNER/NAME)"
        )


def _download(hub_id: str, weights: Weights) -> Path:
    wanted = _CONFIG_FILES if weights == "random" else _CONFIG_FILES + _WEIGHT_FILES
    try:
        folder = snapshot_download(hub_id, allow_patterns=list(wanted), ignore_patterns=list(_UNWANTED_FILES))
    except GatedRepoError as error:
        raise BaseModelError(
            f"base model '{hub_id}' is gated: ask for access at https://huggingface.co/{hub_id}, then run "
            f"'hf auth login' or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"base model '{hub_id}' is neither a folder here nor on the hub, or is private; check the name, "
            f"or run 'hf auth login' or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise BaseModelError(
            f"base model '{hub_id}' is not in the local cache and the hub gives no answer"
            f"{_because(error.__cause__)}; connect, unset HF_HUB_OFFLINE, or give a local folder"
        ) from error
    except HFValidationError as error:
        raise BaseModelError(f"base model '{hub_id}' is no valid hub id; write OWNER/NAME") from error
    except (HTTPError, OSError) as error:
        raise BaseModelError(
            f"base model '{hub_id}' cannot be fetched{_because(error)}; try again"
        ) from error
    return Path(folder)


def _because(error: BaseException | None) -> str:
    return "" if error is None else f" ({' '.join(str(error).split())})"
