from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import embedded_recipes, find_recipe
from caraserve_cli.bench.recipe import load_recipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import InputError, OptionError

GOOD = """
description = "a test"
systems = ["caraserve", "peft-mixed"]
batch_size = 4
repeats = 2
[workload]
base = "base"
adapters = ["adapters"]
requests = "r.jsonl"
output_tokens = 9
[[require]]
ours = "caraserve"
over = "peft-mixed"
at_least = 1.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_every_key_is_read(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.name, recipe.batch_size, recipe.repeats, recipe.warmups) == ("mine", 4, 2, 1)
    assert recipe.workload.base == str(tmp_path / "base")
    assert recipe.workload.requests == tmp_path / "r.jsonl"
    assert (recipe.workload.output_tokens, recipe.workload.limit) == (9, None)
    assert recipe.requirements[0].at_least == 1.5


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("repeats = 2", "repeat = 2", "repeat"),
        ("repeats = 2", "repeats = 0", "repeats"),
        ("batch_size = 4", "", "batch_size"),
        ('"peft-mixed"]', '"vllm"]', "systems"),
        ('over = "peft-mixed"', 'over = "peft-one-adapter"', "over"),
        ("at_least = 1.5", "at_least = -1", "at_least"),
        ("output_tokens = 9", "output_tokens = 'x'", "output_tokens"),
        ("[workload]", "[workload", "not TOML"),
        ("[workload]", "[workload]\nlimits = 3", "[workload]: unknown key 'limits'; did you mean 'limit'?"),
        (
            "at_least = 1.5",
            "at_least = 1.5\nzz = 1",
            "[[require]]: unknown key 'zz'; known are at_",
        ),
        ("batch_size = 4", "batch_size = true", "'batch_size' must be a whole number, got True"),
        ("batch_size = 4", "batch_size = 18446744073709551616", "'batch_size' must be a number of 64 bits"),
        ("batch_size = 4", "batch_size = 4\nwarmups = -1", "'warmups' must be at least 0, got -1"),
        ("batch_size = 4", 'batch_size = 4\ndtype = "auto"', "'dtype' must be one of float32, bfloat16"),
        ("at_least = 1.5", "at_least = nan", "'at_least' must be a number above zero, got nan"),
        ('over = "peft-mixed"', 'over = "caraserve"', "'over' must be another system than 'ours'"),
        ('"peft-mixed"]', '"caraserve"]', "'systems' must be a list of systems without repetition"),
        ('"peft-mixed"]', "3]", "'systems' must be a list of texts, got 3"),
        ('"a test"', '""', "'description' must be a text that is not empty, got ''"),
        ("[[require]]", "[require]", "'require' must be tables, each written [[require]]"),
        ("[workload]", "[[workload]]", "'workload' must be a table, written [workload]"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in GOOD
    with pytest.raises(OptionError) as refused:
        load_recipe(write(tmp_path, GOOD.replace(old, new, 1)))
    assert fragment in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    text = GOOD.replace("repeats = 2\n", "").replace("output_tokens = 9\n", "")
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.device, recipe.dtype, recipe.warmups, recipe.repeats) == ("cpu", "float32", 1, 5)
    assert (recipe.workload.output_tokens, recipe.workload.limit) == (None, None)


def test_a_base_that_is_no_folder_is_left_to_the_hub(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD)).workload.base == "base"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9"')
    with pytest.raises(OptionError, match=r"latin\.toml' is not UTF-8"):
        load_recipe(tmp_path / "latin.toml")


def test_embedded_recipes_are_found_and_valid() -> None:
    names = {load_any_recipe(path).name for path in embedded_recipes()}
    assert {"decode", "peft", "peft-long", "throughput"} <= names
    assert find_recipe("peft").name == "peft.toml"
    with pytest.raises(OptionError, match="did you mean 'peft'"):
        find_recipe("pefd")
    with pytest.raises(OptionError, match="there is no file"):
        find_recipe("nowhere.toml")


def test_a_missing_file_is_no_option() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(Path("/nowhere/x.toml"))
