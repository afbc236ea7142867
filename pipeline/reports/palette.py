"""The look of each method, the same in pictures and legends: colour, shape and weight."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reports.comparison import Method

COLOURS = 8
"""The style sheet has as many, for light and for dark paper, chosen to differ for colour-blind readers too."""
FIRST_TWO = 2
"""Colours that are not used a second time: those of L-Tuning's two methods."""
SHAPES = (
    "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0Z",
    "M0,-1.25L1.25,0L0,1.25L-1.25,0Z",
    "M-0.9,-0.9H0.9V0.9H-0.9Z",
    "M0,-1.1L1.1,0.9H-1.1Z",
    "M0,1.1L1.1,-0.9H-1.1Z",
    "M-0.4,-1.2H0.4V-0.4H1.2V0.4H0.4V1.2H-0.4V0.4H-1.2V-0.4H-0.4Z",
    "M-1.1,0L0.9,-1.1V1.1Z",
)
"""SVG paths. Seven go round at another pace than the colours, so that the pairs do not repeat."""


@dataclass(frozen=True)
class Style:
    """L-Tuning has thick lines and full marks, a baseline thin lines and hollow marks."""

    colour: str
    fill: str
    shape: str
    width: float


def style_of(methods: Sequence[Method]) -> dict[str, Style]:
    """Method name -> its style on the whole page."""
    styles = {}
    for number, method in enumerate(methods):
        again = FIRST_TWO + (number - FIRST_TWO) % (COLOURS - FIRST_TWO)
        colour = f"var(--method-{number if number < COLOURS else again})"
        fill, width = (colour, 3.2) if method.is_ours else ("var(--paper)", 1.4)
        styles[method.name] = Style(colour, fill, SHAPES[number % len(SHAPES)], width)
    return styles
