"""Predicts the time of each step before it is known, and learns from it when it is.

The profile's models are the beginning, and what steps take corrects them while a run goes on: each kind of
step has its own correction, and so has a step that is launched while the device has nothing to do, for the
host's time is then part of it. The same corrected model (`StepPredictor.model`) is what the slack scheduler
plans by and what a fleet's placement compares replicas by. Without a profile the steps themselves are all
there is: a kind of step is predicted from its `STEPS_TO_LEARN`th on, and nothing is planned by it, for what
was never measured lies outside of what was learned.

What a step's time is: from the end of the step before it, or from when it was begun to be planned if that was
later, until its tokens are known (`StepRecord.start_ms`, `end_ms`), without what it stood still for adapters
on their way. With two steps in flight that is the time between the ends of consecutive steps as long as the
device is busy.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from caraserve_cli.perf.online_fit import OnlineFit, Terms
from caraserve_cli.perf.step_correction import NO_CORRECTION, StepCorrection, StepCorrections
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
# What is planned by never believes steps to be shorter than this share of what the profile says. Chosen, not
# measured.
_LEAST_TIMES = 0.2


class Unpredicted(StrEnum):
    """Why nothing is said of a step's time. Only of the first is more learned."""

    LEARNING = "learning"  # too few steps of its kind so far, and no profile
    ASSISTED = "assisted"  # CPU workers compute a part of it
    BESIDE = "beside"  # it is computed beside others, whose times overlap its own
    SHARING = "sharing"  # another is computed beside it: they share the device
    RETRIED = "retried"  # it was tried before, and did not fit the device's memory


class StepPrediction(NamedTuple):
    """What was said of a step before it was computed.

    Attributes:
        load: of the step.
        is_alone: whether no other step was under way when it was launched.
        ms: its time; None where nothing is said of it.
        why_not: then why.
    """

    load: StepLoad
    is_alone: bool
    ms: float | None
    why_not: Unpredicted | None = None

    def without(self, why_not: Unpredicted) -> StepPrediction:
        """Nothing is said of it after all."""
        return self._replace(ms=None, why_not=why_not)

    @property
    def is_measured(self) -> bool:
        """Whether its time tells of others."""
        return self.why_not is None or self.why_not is Unpredicted.LEARNING


class StepPredictor:
    """The steps of one replica.

    Args:
        model: of its machine and base; None where nothing was measured.
    """

    def __init__(self, model: StepModel | None = None) -> None:
        self._measured = model
        self._corrected = model
        self._unit_ms = model.decode.step_ms(1) if model else None
        self._fits: dict[tuple[StepKind, bool], OnlineFit] = {}

    @property
    def source(self) -> str:
        """Where its predictions come from, in words."""
        return LEARNED if self._measured is None else FROM_PROFILE

    @property
    def model(self) -> StepModel | None:
        """What is planned by: the measured model as the steps so far correct it; None where nothing was
        measured."""
        if self._corrected is None and self._measured is not None:
            self._corrected = self._measured.corrected(self.corrections)
        return self._corrected

    @property
    def corrections(self) -> StepCorrections:
        """What the steps so far say of the measured model."""
        return StepCorrections(
            self._correction((StepKind.DECODE,)), self._correction((StepKind.MIXED, StepKind.PREFILL))
        )

    def predict(self, load: StepLoad, *, is_alone: bool = False) -> StepPrediction:
        """The time of a step that is about to be launched, as far as anything is known; microseconds."""
        if load.is_assisted:
            return StepPrediction(load, is_alone, None, Unpredicted.ASSISTED)
        fit = self._fits.get((load.kind, is_alone))
        if self._measured is None:
            if fit is None or fit.num_points < STEPS_TO_LEARN:
                return StepPrediction(load, is_alone, None, Unpredicted.LEARNING)
        elif fit is None:
            return StepPrediction(load, is_alone, self._measured.step_ms(load))
        return StepPrediction(load, is_alone, max(1e-3, fit.predict(self._terms(load))))

    def learn(self, prediction: StepPrediction, measured_ms: float) -> None:
        """What such a step took, without standing still for adapters."""
        if measured_ms <= 0 or not prediction.is_measured:
            return
        if self._unit_ms is None:
            self._unit_ms = measured_ms
        load = prediction.load
        key = (load.kind, prediction.is_alone)
        fit = self._fits.get(key)
        if fit is None:
            fit = self._fits[key] = self._first_fit(measured_ms)
        fit.learn(self._terms(load), measured_ms)
        self._corrected = None

    def _first_fit(self, measured_ms: float) -> OnlineFit:
        if self._measured is not None:
            return OnlineFit(_AS_BELIEVED, _SPREADS_OF_PROFILE)
        assert self._unit_ms is not None
        times = measured_ms / self._unit_ms
        a, b, c, d = _SPREADS_OF_NOTHING
        return OnlineFit((times, 0.0, 0.0, 0.0), (a * times, b * times, c * times, d * times))

    def _terms(self, load: StepLoad) -> Terms:
        """What a step's time is a sum of."""
        unit_ms, model = self._unit_ms, self._measured
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

    def _correction(self, kinds: tuple[StepKind, ...]) -> StepCorrection:
        """By the fit that has seen the most steps of these kinds: most steps of a busy replica are not alone,
        and most that compute prompts are mixed."""
        model, unit_ms = self._measured, self._unit_ms
        fits = [fit for (kind, _), fit in self._fits.items() if kind in kinds]
        if model is None or unit_ms is None or not fits:
            return NO_CORRECTION
        all_times, kv_times, lora_times, units = max(fits, key=lambda fit: fit.num_points).weights
        all_times = max(_LEAST_TIMES, all_times)
        if model.kv_token_ms:
            kv_token_ms = max(kv_times, -all_times) * model.kv_token_ms
        else:
            kv_token_ms = max(0.0, kv_times) * unit_ms / _KV_TOKENS
        has_line = model.lora_kernel is not None
        return StepCorrection(
            times=all_times,
            lora_times=max(lora_times, -all_times) if has_line else 0.0,
            kv_token_ms=kv_token_ms,
            lora_rank_ms=0.0 if has_line else max(0.0, lora_times) * unit_ms / _RANKS,
            constant_ms=units * unit_ms,
        )
