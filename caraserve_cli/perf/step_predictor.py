"""Predicts the time of each step before it is known, and learns from it when it is.

The profile's models are the beginning, and what steps take corrects them while a run goes on: each kind of
step has its own correction, and so has a step that is launched while the device has nothing to do, for the
host's time is then part of it. Without a profile the steps themselves are all there is: a kind of step is
predicted from its `STEPS_TO_LEARN`th on.

What a step's time is: from the end of the step before it, or from when it was begun to be planned if that was
later, until its tokens are known (`StepRecord.start_ms`, `end_ms`), without what it stood still for adapters
on their way. With two steps in flight that is the time between the ends of consecutive steps as long as the
device is busy.
"""

from __future__ import annotations

from typing import NamedTuple

from caraserve_cli.perf.online_fit import OnlineFit, Terms
from caraserve_cli.perf.step_load import StepKind, StepLoad
from caraserve_cli.perf.step_model import StepModel

# Steps of one kind after which one more of it is predicted, where there is no profile. Chosen, not measured.
STEPS_TO_LEARN = 8

FROM_PROFILE, LEARNED = "profile, corrected on line", "learned on line"

# Sizes of what a term of a model that was not measured is counted in; they only bring terms to one size.
_TOKENS, _BATCH, _KV_TOKENS, _RANKS = 512, 64, 100_000, 1000
# By how much a profile's whole time, its part of contexts, that of LoRA, and a constant may be wrong, in
# times of themselves, the constant in decoding steps of one request. Chosen, not measured.
_SPREADS_OF_PROFILE = (0.2, 0.3, 0.3, 0.2)
# The same of a constant, tokens, contexts and LoRA, in times of the first step that was measured.
_SPREADS_OF_NOTHING = (0.5, 1.0, 0.3, 0.3)
_AS_BELIEVED = (1.0, 0.0, 0.0, 0.0)


class StepPrediction(NamedTuple):
    """What was said of a step before it was computed.

    Attributes:
        load: of the step.
        is_alone: whether no other step was under way when it was launched.
        ms: its time, above 0; None where not enough was learned yet.
    """

    load: StepLoad
    is_alone: bool
    ms: float | None


class StepPredictor:
    """The steps of one replica.

    Args:
        model: of its machine and base; None where nothing was measured.
    """

    def __init__(self, model: StepModel | None = None) -> None:
        self._model = model
        self._unit_ms = model.decode.step_ms(1) if model else None
        self._fits: dict[tuple[StepKind, bool], OnlineFit] = {}

    @property
    def source(self) -> str:
        """Where its predictions come from, in words."""
        return LEARNED if self._model is None else FROM_PROFILE

    def predict(self, load: StepLoad, *, is_alone: bool = False) -> StepPrediction:
        """The time of a step that is about to be launched, as far as anything is known; microseconds."""
        fit = self._fits.get((load.kind, is_alone))
        if self._model is None:
            if fit is None or fit.num_points < STEPS_TO_LEARN:
                return StepPrediction(load, is_alone, None)
        elif fit is None:
            return StepPrediction(load, is_alone, self._model.step_ms(load))
        return StepPrediction(load, is_alone, max(1e-3, fit.predict(self._terms(load))))

    def learn(self, load: StepLoad, measured_ms: float, *, is_alone: bool = False) -> None:
        """What such a step took, without standing still for adapters."""
        if measured_ms <= 0:
            return
        if self._unit_ms is None:
            self._unit_ms = measured_ms
        key = (load.kind, is_alone)
        fit = self._fits.get(key)
        if fit is None:
            fit = self._fits[key] = self._first_fit(measured_ms)
        fit.learn(self._terms(load), measured_ms)

    def _first_fit(self, measured_ms: float) -> OnlineFit:
        if self._model is not None:
            return OnlineFit(_AS_BELIEVED, _SPREADS_OF_PROFILE)
        assert self._unit_ms is not None
        times = measured_ms / self._unit_ms
        a, b, c, d = _SPREADS_OF_NOTHING
        return OnlineFit((times, 0.0, 0.0, 0.0), (a * times, b * times, c * times, d * times))

    def _terms(self, load: StepLoad) -> Terms:
        """What a step's time is a sum of."""
        unit_ms, model = self._unit_ms, self._model
        assert unit_ms is not None
        kv_ms = unit_ms * load.kv_tokens / _KV_TOKENS
        lora_ms = unit_ms * load.ranks.lora_rank_sum / _RANKS
        if model is None:
            tokens = load.prompt_tokens + load.num_decoding
            size = _TOKENS if load.prompt_tokens else _BATCH
            return (unit_ms, unit_ms * tokens / size, kv_ms, lora_ms)
        if model.kv_token_ms:
            kv_ms = model.kv_token_ms * load.kv_tokens
        if model.lora_kernel is not None:
            lora_ms = model.lora_kernel.sums_ms(load.ranks)
        return (model.step_ms(load), kv_ms, lora_ms, unit_ms)
