"""What a base model's generation_config.json has for greedy answers, and is not applied.

transformers' `generate` takes what a call leaves open from this file. Here a request says how its tokens are
chosen, or the run's options do. Settings that change greedy answers too are therefore told of, since answers
are compared with those of `generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from caraserve_cli.core import SamplingParams

# What `generate` applies without sampling, and the values with which it does nothing, as with null.
_CHANGES_GREEDY: Final[Mapping[str, tuple[object, ...]]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({}, []),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0,),
    "num_beams": (1,),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "stop_strings": ([], ""),
    "watermarking_config": (),
}
# Those that a request or an option can ask for instead.
_OPTIONS: Final[Mapping[str, str]] = {
    "repetition_penalty": "--repetition-penalty",
    "stop_strings": "--stop",
}


def find_greedy_settings(generation: Mapping[str, object]) -> Mapping[str, object]:
    """What the file has for greedy answers too, and no answer here has of itself."""
    return {
        key: value
        for key, neutral in _CHANGES_GREEDY.items()
        if (value := generation.get(key)) is not None and value not in neutral
    }


def describe_unapplied(settings: Mapping[str, object], sampling: SamplingParams) -> str | None:
    """A line for the user about `settings` that are not applied; None where there are none, or where the
    run's `sampling`, which requests have by default, has others in their place."""
    default = SamplingParams()
    decided = {
        "repetition_penalty": sampling.repetition_penalty != default.repetition_penalty,
        "stop_strings": sampling.stop != default.stop,
    }
    unapplied = {key: value for key, value in settings.items() if not decided.get(key, False)}
    if not unapplied:
        return None
    told = ", ".join(
        f"{key} {value!r}" if isinstance(value, int | float) else key for key, value in unapplied.items()
    )
    note = f"the base's generation_config.json has {told}, which transformers applies and this run does not"
    return "; ".join([note, *(f"{_OPTIONS[key]} asks for it" for key in unapplied if key in _OPTIONS)])
