"""A workload holds only requests that every system must answer alike."""

from __future__ import annotations

import dataclasses

import pytest

from caraserve_cli.bench.recipe import load_recipe
from caraserve_cli.bench.workload import load_workload, replica_options
from caraserve_cli.core import SamplingParams
from caraserve_cli.errors import InputError
from tests.bench.conftest import WriteRecipe
from tests.cli.command import SAMPLE


def test_requests_are_tokenised_and_their_adapters_found(write_recipe: WriteRecipe) -> None:
    workload = load_workload(load_recipe(write_recipe()))
    assert [request.id for request in workload.requests] == ["u0", "c0", "b0", "u1", "c1"]
    assert workload.adapters == {"upper": SAMPLE / "adapters/upper", "count": SAMPLE / "adapters/count"}
    # A byte a token, after <bos>.
    assert workload.num_prompt_tokens == sum(
        1 + len(f"Input: {word}\nOutput: ") for word in ("horizon", "whale", "fig", "teapot", "chimney")
    )
    assert workload.eos_token_ids == (257,)


def test_a_fixed_length_of_answers(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe())
    fixed = dataclasses.replace(recipe.workload, output_tokens=7, limit=2)
    workload = load_workload(dataclasses.replace(recipe, workload=fixed))
    assert [request.id for request in workload.requests] == ["u0", "c0"]
    assert {request.sampling for request in workload.requests} == {
        SamplingParams(max_tokens=7, ignore_eos=True)
    }
    assert workload.eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.5}, r"line 1: temperature is 0\.5; systems are compared on plain greedy answers"),
        ({"stop": ["\n"]}, "line 1: stop is"),
        ({"ignore_eos": True}, "line 1: ignore_eos is True"),
        ({"arrival_ms": 5}, "line 1: arrival_ms is not 0"),
        ({"max_tokens": 500}, "line 1: prompt and max_tokens take .* tokens, the context has 512"),
        ({"adapter": "upper-case"}, "line 1: adapter 'upper-case' is in none"),
        ({"colour": "red"}, 'line 1: unknown key "colour"'),
    ],
)
def test_a_row_that_cannot_be_compared_is_refused(
    write_recipe: WriteRecipe, changes: dict[str, object], message: str
) -> None:
    recipe = load_recipe(write_recipe(rows=({"prompt": "Input: fig\nOutput: ", **changes},)))
    with pytest.raises(InputError, match=rf"requests\.jsonl', {message}"):
        load_workload(recipe)


def test_a_batch_may_be_larger_than_a_step_is_by_default(write_recipe: WriteRecipe) -> None:
    recipe = dataclasses.replace(load_recipe(write_recipe()), batch_size=5000)
    assert len(load_workload(recipe).requests) == 5
    assert replica_options(recipe).max_batch_tokens == 5000


def test_no_requests_at_all(write_recipe: WriteRecipe) -> None:
    with pytest.raises(InputError, match="has no requests"):
        load_workload(load_recipe(write_recipe(rows=())))
