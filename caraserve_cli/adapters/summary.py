"""What one adapter is, told from its config and headers alone: for lists of adapters. Reads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import module_path, read_layout, tensor_role
from caraserve_cli.adapters.weight_file import TensorHeader, open_weight_file, read_raw_header
from caraserve_cli.core import LORA_MODULES, BaseShape
from caraserve_cli.errors import AdapterError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSummary:
    """One line of a list of adapters. What a damaged adapter does not tell stays None or empty.

    `lora_ranks` and `lora_alphas` are (smallest, largest) of its modules, `lora_alpha` what holds where no
    alpha_pattern matches; `file_bytes` the size of the weight file; `problem` why the adapter
    is refused, or None where it can be served. NaN and infinite weights are only found on loading.
    """

    name: str
    folder: Path
    lora_ranks: tuple[int, int] | None = None
    lora_alpha: float | None = None
    lora_alphas: tuple[float, float] | None = None
    modules: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    file_bytes: int = 0
    problem: str | None = None


def inspect_adapter(name: str, folder: Path, shape: BaseShape | None = None) -> AdapterSummary:
    """Summary of the adapter in `folder`; with `shape`, also whether it fits that base. Never raises
    AdapterError: what it would say is in `problem`."""
    return AdapterInspector(shape).inspect(name, folder)


class AdapterInspector:
    """Summaries of many adapters. Adapters that were trained alike have the same config and the same header;
    what these tell is found once: of 3,000 adapters with 13 different ones.

    Args:
        shape: the base that they should fit, if one is known.
    """

    def __init__(self, shape: BaseShape | None = None) -> None:
        self._shape = shape
        # By config, header and size. Their number is that of different ones, not that of adapters.
        self._known: dict[tuple[object, ...], AdapterSummary] = {}

    def inspect(self, name: str, folder: Path) -> AdapterSummary:
        """The same as `inspect_adapter`."""
        config, problem = None, None
        try:
            config = PeftConfig.read(name, folder)
        except AdapterError as error:
            problem = error.reason
        header = None if config is None else read_raw_header(folder)
        if config is None or header is None:
            return self._look_closely(name, folder, config, problem)
        key = (*config.identity, *header)
        if (alike := self._known.get(key)) is not None:
            return replace(alike, name=name, folder=folder)
        summary = self._look_closely(name, folder, config, problem)
        if summary.problem is None:  # messages of a damaged one may name its folder
            self._known[key] = summary
        return summary

    def _look_closely(
        self, name: str, folder: Path, config: PeftConfig | None, problem: str | None
    ) -> AdapterSummary:
        summary = AdapterSummary(
            name=name, folder=folder, lora_alpha=None if config is None else config.lora_alpha
        )
        try:
            with open_weight_file(name, folder, headers_only=True) as file:
                summary = _with_headers(replace(summary, file_bytes=file.size_bytes), file.headers, config)
                if config is not None:
                    read_layout(name, config, file.headers, self._shape)
        except AdapterError as error:
            problem = problem or error.reason
        return replace(summary, problem=problem)


def _with_headers(
    summary: AdapterSummary, headers: Mapping[str, TensorHeader], config: PeftConfig | None
) -> AdapterSummary:
    """The summary with what the headers of LoRA tensors tell; all others are passed over."""
    ranks: set[int] = set()
    alphas: set[float] = set()
    modules: set[str] = set()
    dtypes: set[str] = set()
    for name, header in headers.items():
        role = tensor_role(name)
        if role is None:
            continue
        modules.add(role.key[1])
        dtypes.add(header.dtype)
        if config is not None:
            alphas.add(config.alpha_of(module_path(role.key)))
        if role.part == "lora_A.weight" and header.shape:
            ranks.add(header.shape[0])
    return replace(
        summary,
        lora_ranks=(min(ranks), max(ranks)) if ranks else None,
        lora_alphas=(min(alphas), max(alphas)) if alphas else None,
        modules=tuple(module for module in LORA_MODULES if module in modules),
        dtypes=tuple(sorted(dtypes)),
    )
