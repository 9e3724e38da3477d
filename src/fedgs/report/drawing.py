"""How charts are drawn: inline SVG by matplotlib, coloured by the page's own variables, so light and dark both work."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from contextlib import AbstractContextManager

import matplotlib
from matplotlib.figure import Figure

__all__ = ["DASHES", "GRID", "INK", "PAPER", "QUIET", "SERIES", "as_svg", "plain", "shortened", "styled"]

INK, QUIET, GRID, PAPER = "#00fe01", "#00fe02", "#00fe03", "#00fe04"
SERIES = tuple(f"#00fe{number:02x}" for number in range(0x10, 0x18))
_VARIABLES = {INK: "--ink", QUIET: "--quiet", GRID: "--rule", PAPER: "--paper"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))
_LONGEST_NAME = 20
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedgs",
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
}


def styled() -> AbstractContextManager[None]:
    """Draws what is made inside in the style of the pages."""
    return matplotlib.rc_context(_STYLE)  # type: ignore[arg-type]


def shortened(text: str) -> str:
    """Cuts a name off that would leave no room for what it names."""
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def plain(text: str) -> str:
    """Keeps matplotlib from reading data as mathematics, or as a label to hide."""
    return " " + text.replace("$", r"\$")


def as_svg(figure: Figure) -> str:
    """Draws a figure that was made in this style; several on a page do not disturb each other."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's own font lacks, and it is the browser that draws the text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = stream.getvalue()
    salt = hashlib.sha256(drawn.encode()).hexdigest()[:8]
    text = drawn[drawn.index("<svg") :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>", ""),
        (r"<style.*?</style>", ""),
        (r"<svg[^>]*(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1>"),
        (r' id="[a-zA-Z0-9.]+_\d+"', ""),
        (r' id="', f' id="{salt}-'),
        (r"url\(#", f"url(#{salt}-"),
        (r'xlink:href="#', f'href="#{salt}-'),
        (r"font-family: [^;\"]*;? ?", ""),
    ):
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
