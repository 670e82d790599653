"""Attainment against load for all policies, as one SVG that needs nothing beside it.

A template of lines and labels: a charting library would be a dependency of megabytes for two small panels.
"""

from __future__ import annotations

from typing import NamedTuple

from jinja2 import Environment

from caraserve_cli.bench.cluster_result import HELD_ATTAINMENT, ClusterResult

_WIDTH, _HEIGHT = 420, 300  # of a panel's plot, in pixels
_LEFT, _TOP, _PANEL = 60, 68, 560
# Of Okabe and Ito (2008), told apart by colour-blind people too.
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#999999", "#0072b2", "#d55e00", "#cc79a7")

_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<svg xmlns="http://www.w3.org/2000/svg" width="{{ width }}" height="{{ height }}" font-family="sans-serif" \
font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{{ left }}" y="18" font-weight="bold">{{ title }}</text>
<text x="{{ left }}" y="36">{{ machines }}</text>
{% for panel in panels %}
<g transform="translate({{ panel.x }} {{ top }})">
<text y="-12">{{ panel.name }}: share of requests within the SLO, by requests/s</text>
{% for mark in panel.y_marks %}
<path d="M0 {{ mark.at }}H{{ plot_width }}" stroke="#ddd"/>
<text x="-6" y="{{ mark.at + 4 }}" text-anchor="end">{{ mark.label }}</text>
{% endfor %}
{% for mark in panel.x_marks %}
<text x="{{ mark.at }}" y="{{ plot_height + 18 }}" text-anchor="middle">{{ mark.label }}</text>
{% endfor %}
<path d="M0 {{ panel.held }}H{{ plot_width }}" stroke="#888" stroke-dasharray="4 3"/>
{% for line in panel.lines %}
<polyline points="{{ line.points }}" fill="none" stroke="{{ line.colour }}" stroke-width="2"/>
{% for dot in line.dots %}
<circle cx="{{ dot[0] }}" cy="{{ dot[1] }}" r="3" fill="{{ line.colour }}"/>
{% endfor %}
<text x="{{ plot_width + 8 }}" y="{{ 14 + 18 * loop.index0 }}" fill="{{ line.colour }}">{{ line.name }}</text>
{% endfor %}
</g>
{% endfor %}
</svg>
"""
)


class _Mark(NamedTuple):
    at: float
    label: str


class _Line(NamedTuple):
    name: str
    colour: str
    dots: tuple[tuple[float, float], ...]

    @property
    def points(self) -> str:
        return " ".join(f"{x},{y}" for x, y in self.dots)


class _Panel(NamedTuple):
    name: str
    x: int
    held: float
    x_marks: tuple[_Mark, ...]
    y_marks: tuple[_Mark, ...]
    lines: tuple[_Line, ...]


def attainment_svg(result: ClusterResult) -> str:
    """One panel for each kernel; a dashed line where 99% keep the SLO."""
    panels = [_panel(result, kernel, place) for place, kernel in enumerate(result.lora_kernels)]
    facts = result.facts
    return _TEMPLATE.render(
        title=f"{facts.recipe}, simulated, SLO {facts.slo_ms:.1f} ms a token",
        machines=f"{facts.num_replicas} x {facts.machine}",
        panels=panels,
        width=_LEFT + _PANEL * len(panels),
        height=_TOP + _HEIGHT + 40,
        left=_LEFT,
        top=_TOP,
        plot_width=_WIDTH,
        plot_height=_HEIGHT,
    )


def _panel(result: ClusterResult, lora_kernel: str, place: int) -> _Panel:
    rates = sorted({point.rate_per_s for point in result.points if point.lora_kernel == lora_kernel})
    low, span = rates[0], (rates[-1] - rates[0]) or 1.0

    def x(rate_per_s: float) -> float:
        return round(_WIDTH * (rate_per_s - low) / span, 1)

    lines = (
        _Line(
            policy,
            _COLOURS[index % len(_COLOURS)],
            tuple((x(p.rate_per_s), _y(p.attainment)) for p in result.of_policy(lora_kernel, policy)),
        )
        for index, policy in enumerate(result.policies)
    )
    return _Panel(
        name=lora_kernel,
        x=_LEFT + _PANEL * place,
        held=_y(HELD_ATTAINMENT),
        x_marks=tuple(_Mark(x(rate), f"{rate:,.0f}") for rate in rates),
        y_marks=tuple(_Mark(_y(share / 10), f"{share * 10}%") for share in range(0, 11, 2)),
        lines=tuple(lines),
    )


def _y(attainment: float) -> float:
    return round(_HEIGHT * (1 - attainment), 1)
