"""Figures of what a network makes of an image: plain PNGs that can stand alone, each with its legend."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.font_manager import findfont as find_font
from matplotlib.lines import Line2D

__all__ = ["CaseView", "content_figure", "drawable", "look_figure", "style_figure"]

_PANEL, _GAP = 2.1, 0.08
_TRUTH, _PREDICTION = "#ffffff", "#19d3f5"
_MAP, _CONTENT = "RdBu_r", "BrBG"
_STYLE = {
    "font.family": ["sans-serif"],
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "figure.titlesize": 10.0,
    "figure.titleweight": "bold",
}
_MOST_CHANNELS = 8

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CaseView:
    """What a network makes of one case.

    Attributes:
        title: The case, the size of its lesion and its score.
        image: (H, W, 3), uint8.
        truth: The expert's mask, of any size.
        prediction: The network's mask, of that size.
        grad_cam: (H, W), 0 or above.
        gradients: (H, W), signed.
        reconstruction: The image made again from content and style, (H, W, 3); None where a network does not.
        content: Its maps of content, (channels, h, w); None where a network has none.
    """

    title: str
    image: Picture
    truth: Mask
    prediction: Mask
    grad_cam: Map
    gradients: Map
    reconstruction: Picture | None = None
    content: Map | None = None


def look_figure(view: CaseView) -> bytes:
    """Image, outlines, and what spoke for the lesion; the maps share one scale of colours."""
    maps = {
        "Region that counted\n(Grad-CAM)": view.grad_cam,
        "Pixels that counted\n(integrated gradients)": view.gradients,
    }
    again = () if view.reconstruction is None else (view.reconstruction,)
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        sheet = _Sheet(1, 2 + len(again) + len(maps), view.title, above=0.4, below=0.62)
        image, outlines, *others = sheet.axes[0]
        _show(image, view.image, "Image")
        _show(outlines, view.image, "Outlines")
        _outline(outlines, view.truth, view.image.shape, _TRUTH, "-")
        _outline(outlines, view.prediction, view.image.shape, _PREDICTION, "--")
        for panel, picture in zip(others, again, strict=False):
            _show(panel, picture, "Made again from\ncontent and style")
        coarse, fine = others[len(again) :]
        grey = np.repeat(view.image.mean(2, keepdims=True).astype(np.uint8), 3, 2)
        for panel, (title, values) in zip((coarse, fine), maps.items(), strict=True):
            _show(panel, grey, title)
            shares = _shares(values)
            visible = np.minimum(1, 1.6 * np.abs(shares))
            panel.imshow(shares, cmap=_MAP, vmin=-1, vmax=1, alpha=visible, extent=_extent(view))
            _outline(panel, view.truth, view.image.shape, "#000000", "-")
        scale = sheet.scale_below(coarse, fine, Normalize(-1, 1), _MAP)
        scale.set_ticks([-1, 0, 1], labels=["speaks against\nthe lesion", "0", "speaks for\nthe lesion"])
        handles = [
            Line2D([], [], color=_TRUTH, label="expert"),
            Line2D([], [], color=_PREDICTION, linestyle="--", label="network"),
        ]
        outlines.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.03),
            ncols=2,
            facecolor="#555555",
            labelcolor="#ffffff",
        )
        return sheet.png()


def content_figure(view: CaseView) -> bytes:
    """The maps of content, at most 8, those that vary most, with one scale of colours.

    Raises:
        ValueError: The view has no content.
    """
    if view.content is None:
        raise ValueError("this network has no content to show")
    order = np.sort(np.argsort(-view.content.std(axis=(1, 2)), kind="stable")[:_MOST_CHANNELS])
    top = max(float(np.abs(view.content[order]).max()), 1e-6)
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        sheet = _Sheet(2, _MOST_CHANNELS // 2, view.title, above=0.28, right=0.95)
        for panel in sheet.axes.flat[len(order) :]:
            panel.set_axis_off()
        for panel, channel in zip(sheet.axes.flat, order, strict=False):
            values = view.content[channel]
            title = f"Content {channel + 1} of {len(view.content)}"
            _show(panel, values, title, cmap=_CONTENT, vmin=-top, vmax=top)
            _outline(panel, view.truth, values.shape, "#000000", "-")
        sheet.scale_right(Normalize(-top, top), _CONTENT).set_label("value (no unit)")
        return sheet.png()


def style_figure(
    rows: Sequence[tuple[str, Picture]], columns: Sequence[tuple[str, Picture]], rendered: Sequence[Sequence[Picture]]
) -> bytes:
    """A grid: the content of the row's image in the style of the column's.

    Args:
        rows: Name and image whose content is shown.
        columns: Name and image whose style is shown.
        rendered: Per row, an image per column.
    """
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        title = "Content of the row in the style of the column"
        sheet = _Sheet(len(rows) + 1, len(columns) + 1, title, above=0.06, left=0.3, first=0.2, panel=1.3)
        corner, *heads = sheet.axes[0]
        corner.set_axis_off()
        corner.text(0.5, 0.5, "content \N{DOWNWARDS ARROW}\nstyle \N{RIGHTWARDS ARROW}", ha="center", va="center")
        for panel, (name, picture) in zip(heads, columns, strict=True):
            _show(panel, picture, drawable(name, 18))
        for line, (name, picture), images in zip(sheet.axes[1:], rows, rendered, strict=True):
            _show(line[0], picture, "")
            line[0].set_ylabel(drawable(name, 18)).set_parse_math(False)
            for panel, image in zip(line[1:], images, strict=True):
                _show(panel, image, "")
        return sheet.png()


def drawable(name: str, longest: int) -> str:
    """Gives a name as a figure can show it: shortened in the middle, with signs that its font lacks as question marks.

    >>> drawable("a-very-long-name-of-a-case", 15)
    'a-very-…-a-case'
    """
    font = get_font(find_font(FontProperties(family=["sans-serif"])))
    shown = "".join(sign if font.get_char_index(ord(sign)) else "?" for sign in name)
    half = (longest - 1) // 2
    return shown if len(shown) <= longest else f"{shown[: longest - 1 - half]}…{shown[-half:]}"


class _Sheet:
    """A figure of square panels, whose places are in inches so that rows line up whatever stands around them.

    Args:
        rows: Rows of panels.
        columns: Panels per row.
        title: What stands above all.
        above: Room above each row.
        below: Room below the last row.
        left: Room on the left.
        right: Room on the right.
        first: More room above the first row.
        panel: Side of a panel.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        title: str,
        *,
        above: float,
        below: float = 0.06,
        left: float = 0.08,
        right: float = 0.08,
        first: float = 0.0,
        panel: float = _PANEL,
    ) -> None:
        self._size = left + columns * (panel + _GAP) + right, 0.35 + first + rows * (panel + above) + below
        self._below, self._right = below, right
        self._figure = Figure(figsize=self._size, dpi=110)
        words = self._figure.suptitle(title, x=0.08 / self._size[0], y=1 - 0.08 / self._size[1], ha="left", va="top")
        words.set_parse_math(False)
        tops = [below + (rows - row - 1) * (panel + above) for row in range(rows)]
        lefts = [left + column * (panel + _GAP) for column in range(columns)]
        self.axes = np.array([[self._place(x, y, panel, panel) for x in lefts] for y in tops], dtype=object)

    def scale_below(self, first: Axes, last: Axes, norm: Normalize, colours: str) -> Colorbar:
        """Puts a scale of colours below some neighbouring panels of the last row."""
        left, right = first.get_position().x0 * self._size[0], last.get_position().x1 * self._size[0]
        place = self._place(left + 0.4, self._below - 0.2, right - left - 0.8, 0.11)
        return self._figure.colorbar(ScalarMappable(norm, colours), cax=place, orientation="horizontal")

    def scale_right(self, norm: Normalize, colours: str) -> Colorbar:
        """Puts a scale of colours beside all panels."""
        bottom, top = self.axes[-1, 0].get_position().y0, self.axes[0, 0].get_position().y1
        height = (top - bottom) * self._size[1]
        place = self._place(self._size[0] - self._right + 0.06, bottom * self._size[1], 0.13, height)
        return self._figure.colorbar(ScalarMappable(norm, colours), cax=place)

    def png(self) -> bytes:
        """Draws it."""
        stream = io.BytesIO()
        self._figure.savefig(stream, format="png", metadata={"Software": None})
        return stream.getvalue()

    def _place(self, left: float, bottom: float, width: float, height: float) -> Axes:
        across, up = self._size
        return self._figure.add_axes((left / across, bottom / up, width / across, height / up))


def _show(axes: Axes, values: npt.NDArray[np.generic], title: str, **options: object) -> None:
    axes.imshow(values, **options)  # type: ignore[arg-type]
    axes.set_title(title).set_parse_math(False)
    axes.set_xticks([])
    axes.set_yticks([])


def _outline(axes: Axes, mask: Mask, shape: Sequence[int], colour: str, line: str) -> None:
    if not mask.any():
        return
    # A pixel of the mask may be smaller than one of the picture; its centre is where it belongs there.
    y, x = ((np.arange(-1, n + 1) + 0.5) * side / n - 0.5 for n, side in zip(mask.shape, shape, strict=False))
    axes.contour(x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=colour, linestyles=line, linewidths=1.1)
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(shape[0] - 0.5, -0.5)


def _shares(values: Map) -> Map:
    """Values as shares of the strongest, where single pixels do not count."""
    strongest = float(np.quantile(np.abs(values), 0.998))
    shares: Map = np.clip(values / (strongest or float(np.abs(values).max()) or 1.0), -1, 1)
    return shares


def _extent(view: CaseView) -> tuple[float, float, float, float]:
    height, width = view.image.shape[:2]
    return -0.5, width - 0.5, height - 0.5, -0.5
