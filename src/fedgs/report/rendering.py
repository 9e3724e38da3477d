"""From a template to a page that stands alone: what all pages share."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgs.errors import MissingExtraError
from fedgs.report.records import Mean

__all__ = ["CREDITS", "MINUS", "NONE", "file_uri", "png_uri", "rendered", "require_extra"]

CREDITS = {
    "polypgen": "PolypGen: Ali S. et al., A multi-centre polyp detection and segmentation dataset for generalisability "
    "assessment, Scientific Data 10:75 (2023), licence CC BY 4.0; frames shown here are scaled and outlined.",
}
"""What must stand beside frames, by the name of their adapter."""

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def require_extra() -> None:
    """Makes sure that a page can be made.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("report", "the report page") from error


def rendered(template: str, content: Mapping[str, Any], *, beside: Path | None = None) -> str:
    """Fills a template.

    Args:
        template: Name of its file.
        content: What it speaks of.
        beside: Folder of the template; that of this module if left out, whose files can be included in either case.
    """
    import jinja2

    folders = [Path(__file__).parent] if beside is None else [beside, Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "signed": _signed, "points": _points, "thousands": _thousands}
    environment.filters |= {"measured": _measured}
    return environment.get_template(template).render(content).lstrip()


def png_uri(path: Path) -> str:
    """Gives a PNG as a data URI."""
    return file_uri(path.read_bytes(), "image/png")


def file_uri(content: bytes, kind: str) -> str:
    """Gives a file as a data URI.

    Args:
        content: What is in it.
        kind: Its media type.
    """
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def _score(mean: Mean) -> str:
    return NONE if mean.mean is None else f"{mean.mean:.3f}"


def _measured(mean: Mean | None, unit: str) -> str:
    if mean is None or mean.mean is None:
        return NONE
    shown = {"px": f"{mean.mean:.1f} px", "per image": f"{mean.mean:.2f}", "%": f"{100 * mean.mean:.2f} %"}
    return shown.get(unit, f"{mean.mean:.3f}")


def _signed(value: float | None) -> str:
    return NONE if value is None else _with_sign(f"{value:+.3f}")


def _points(value: float | None) -> str:
    return NONE if value is None else f"{_with_sign(f'{100 * value:+.0f}')} pts"


def _with_sign(number: str) -> str:
    return number.replace("-", MINUS) if float(number) else number[1:]


def _thousands(number: int) -> str:
    return f"{number:,}"
