"""Every field that PEFT knows is classified, and refused ones only when they ask for something."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from peft import LoraConfig

from caraserve_cli.adapters.peft_fields import (
    CLASSIFIED,
    HARMLESS,
    HONOURED,
    JUDGED,
    OBJECTS_OF_SETTINGS,
    REFUSED,
    check_fields,
)
from caraserve_cli.errors import AdapterError

LORA = {"peft_type": "LORA"}


def test_every_field_of_the_installed_peft_is_classified() -> None:
    """Fails with a PEFT that has a new field: read what it does, then classify it."""
    assert {field.name for field in dataclasses.fields(LoraConfig)} - CLASSIFIED == set()


def test_no_field_is_in_two_tables() -> None:
    assert len(CLASSIFIED) == len(HONOURED) + len(HARMLESS) + len(REFUSED) + len(JUDGED)


def test_a_default_config_asks_for_nothing_that_is_refused(tmp_path: Path) -> None:
    LoraConfig(target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    check_fields("a", json.loads((tmp_path / "adapter_config.json").read_text()))


@pytest.mark.parametrize("field", [*REFUSED, "field_of_the_future"])
@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_switched_off_fields_pass(field: str, value: object) -> None:
    if value == {} and field in OBJECTS_OF_SETTINGS:
        with pytest.raises(AdapterError, match=rf"{field} is"):
            check_fields("a", LORA | {field: value})
        return
    check_fields("a", LORA | {field: value})


@pytest.mark.parametrize("field", [*REFUSED, "field_of_the_future"])
@pytest.mark.parametrize("value", [True, 0, 7, ["x"], {"x": 1}, "x"])
def test_switched_on_fields_are_refused_by_name(field: str, value: object) -> None:
    """0 is a value like any other: it may be a token or a layer."""
    with pytest.raises(AdapterError, match=rf"^adapter 'team/a': .*\b{field}\b"):
        check_fields("team/a", LORA | {field: value})


@pytest.mark.parametrize("fields", [{}, {"peft_type": None}, {"peft_type": "lora"}])
def test_peft_type_must_be_lora(fields: dict[str, object]) -> None:
    with pytest.raises(AdapterError, match="peft_type is"):
        check_fields("a", fields)


@pytest.mark.parametrize(
    "init", ["PiSSA", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga", 1, []]
)
def test_initialisations_that_change_the_base_are_refused(init: object) -> None:
    with pytest.raises(AdapterError, match="init_lora_weights is"):
        check_fields("a", LORA | {"init_lora_weights": init})


def test_long_values_stay_on_one_short_line() -> None:
    with pytest.raises(AdapterError) as caught:
        check_fields("a", LORA | {"target_parameters": ["x\n" * 5000]})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
