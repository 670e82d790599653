"""Selection, ranks and scales agree with PEFT's own functions on every module of a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import module_path
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.errors import AdapterError

# Twelve layers, so that 1 and 11 can be confused.
PATHS = [module_path((layer, module)) for layer in range(12) for module in LORA_MODULES]

_NAMES = st.sampled_from(
    [
        "q_proj",
        "v_proj",
        "proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "1.mlp.down_proj",
        PATHS[0],
        PATHS[80],
        "lm_head",
    ]
)
_REGEXES = st.sampled_from(
    [
        ".*",
        r".*\.[qv]_proj",
        r"model\.layers\.(1|3)\.mlp\..*",
        "q_proj",
        r".*attn.*",
        r".*\.1\..*_proj",
        "up|down",
    ]
)
_PATTERNS = st.sampled_from(
    [
        "q_proj",
        "proj",
        r"^model\.layers\.1\..*",
        r"layers.1.self_attn.q_proj",
        ".*_proj",
        r".*\.1\..*",
        "up_proj|k_proj",
    ]
)


def parse(**fields: Any) -> PeftConfig:
    return PeftConfig.parse("a", {"peft_type": "LORA", "target_modules": ["q_proj"], **fields})


@given(
    targets=st.lists(_NAMES, min_size=1, unique=True) | _REGEXES,
    excluded=st.none() | st.lists(_NAMES, unique=True) | _REGEXES,
    layers=st.none() | st.integers(0, 12) | st.lists(st.integers(0, 12)),
    pattern=st.sampled_from([None, [], "layers", ["h", "layers"], "h", "laye.s"]),
)
def test_selects_what_peft_selects(targets: Any, excluded: Any, layers: Any, pattern: Any) -> None:
    if isinstance(targets, str) or layers in (None, []):
        layers = None
        pattern = None
    fields = {
        "target_modules": targets,
        "exclude_modules": excluded,
        "layers_to_transform": layers,
        "layers_pattern": pattern,
    }
    peft, ours = LoraConfig(**fields), parse(**fields)
    for path in PATHS:
        assert ours.selects(path) == bool(check_target_module_exists(peft, path)), path


@given(
    ranks=st.dictionaries(_PATTERNS, st.integers(1, 64)),
    alphas=st.dictionaries(_PATTERNS, st.integers(1, 64)),
    use_rslora=st.booleans(),
)
def test_ranks_and_scales_are_pefts(ranks: dict[str, int], alphas: dict[str, int], use_rslora: bool) -> None:
    ours = parse(r=8, lora_alpha=16, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora)
    for path in PATHS:
        lora_rank = ranks.get(get_pattern_key(list(ranks), path), 8)
        alpha = alphas.get(get_pattern_key(list(alphas), path), 16)
        assert ours.rank_of(path) == lora_rank
        assert ours.scale_of(path) == alpha / (lora_rank**0.5 if use_rslora else lora_rank)


def test_all_linear_is_every_module_but_the_head() -> None:
    config = parse(target_modules="All-Linear", exclude_modules=["k_proj"])
    assert not config.selects("lm_head")
    assert {path for path in PATHS if not config.selects(path)} == {p for p in PATHS if p.endswith("k_proj")}


def test_fields_left_out_have_pefts_defaults() -> None:
    defaults = LoraConfig()
    config = parse()
    assert (config.lora_rank, config.lora_alpha) == (defaults.r, defaults.lora_alpha)
    assert (config.use_rslora, config.lora_bias) == (defaults.use_rslora, defaults.lora_bias)


def test_null_patterns_are_empty() -> None:
    assert parse(rank_pattern=None, alpha_pattern=None, layers_pattern=None).rank_of(PATHS[0]) == 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", -1),
        ("r", True),
        ("r", 4.0),
        ("lora_alpha", "16"),
        ("lora_alpha", None),
        ("lora_alpha", float("inf")),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"[": 4}),
        ("rank_pattern", {"(?i)q_proj": 4}),  # flags stand first only, and PEFT puts something before them
        ("alpha_pattern", {"q_proj": [1]}),
        ("alpha_pattern", [1]),
        ("use_rslora", "yes"),
        ("lora_bias", 1),
        ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", []),
        ("target_modules", "[q"),
        ("exclude_modules", [""]),
        ("exclude_modules", "("),
        ("layers_to_transform", ["1"]),
        ("layers_to_transform", [True]),
        ("layers_to_transform", True),
        ("layers_pattern", 3),
        ("layers_pattern", ["("]),
        ("layers_pattern", "(?P<idx>layers)"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(AdapterError, match=rf"^adapter 'a': {field} ") as caught:
        parse(**{field: value})
    assert "\n" not in str(caught.value)


def test_a_config_of_early_peft_is_read(tmp_path: Path) -> None:
    """Written by PEFT 0.2, with fields that are gone today."""
    fields = {
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 16,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    config = PeftConfig.read("alpaca", tmp_path)
    assert config.scale_of(PATHS[0]) == 1.0
