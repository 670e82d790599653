"""In which pieces, and in which order, the layers of an adapter come to the device. Numbers only: the model
that decides how they come knows it, and the engine cuts its steps there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

# Layers that are copied in one piece. A piece of a small adapter (rank 8 on q, k, v, o of Llama-2-7B: 2 MB)
# is then large enough for the link. The very first layer is a group by itself: all wait for it. H200, a step
# of 64 prompts of 128 tokens with 64 cold adapters (4 GB): 189 ms, 175 ms with all of them resident, 250 ms
# with all copied before the step.
LAYERS_PER_COPY = 4

# A group of layers: the first, and the one after the last.
LayerGroup = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LayerOrder:
    """In which order a transfer brings its layers.

    Attributes:
        first_layer: brought first, then those after it, at last those before it.
        in_one_piece: all layers together, for whoever waits for the whole of it anyway.
        in_turn: all of it before anything of the next adapter, which may be for a later step; others are
            copied together, layer by layer, beneath the one step that uses all of them.
    """

    first_layer: int = 0
    in_one_piece: bool = False
    in_turn: bool = False

    def groups(self, num_layers: int) -> tuple[LayerGroup, ...]:
        """The groups of layers, as they are copied."""
        if self.in_one_piece:
            return ((0, num_layers),)
        first = self.first_layer
        ends = [first, first + 1, *range(first + LAYERS_PER_COPY, num_layers, LAYERS_PER_COPY), num_layers]
        late = pairwise(dict.fromkeys(end for end in ends if end <= num_layers))
        early = pairwise([*range(0, first, LAYERS_PER_COPY), first])
        return (*late, *early)
