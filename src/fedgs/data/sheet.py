"""The contact sheet of an index: its near duplicates side by side, for a person to judge."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fedgs.data.images import as_picture
from fedgs.data.index import Index
from fedgs.data.linked import near_rows
from fedgs.data.near import hash_distance
from fedgs.files import write_atomically

__all__ = ["SHEET_FILE", "write_sheet"]

SHEET_FILE = "near-duplicates.png"

_MOST_GROUPS, _MOST_FRAMES = 40, 6
_WIDTH, _HEIGHT = 200, 150
_GAP, _LINE = 12, 16
_BACKGROUND, _FRAME, _INK, _FAINT = "#ffffff", "#e8e8e8", "#1a1a1a", "#6a6a6a"
_FONT_SIZE = 12

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_sheet(index: Index) -> Path | None:
    """Draws the groups of near duplicates, a row each, into the folder of the index.

    Groups over several sites come first. A caption names site and case and tells in how many of 255 bits the frame's
    hash differs from that of the first in its row. At most 40 groups and 6 frames of each are drawn; a line says how
    many more there are.

    Args:
        index: An opened index.

    Returns:
        The PNG file; None where there are no near duplicates, and then an earlier sheet is removed.

    Raises:
        DataError: A cache file is missing or damaged.
    """
    path = index.folder / SHEET_FILE
    sites = index.table["site"]
    groups = sorted(near_rows(index.table), key=lambda rows: sites.iloc[rows].nunique() == 1)
    if not groups:
        path.unlink(missing_ok=True)
        return None
    buffer = io.BytesIO()
    _draw(index, [rows.tolist() for rows in groups]).save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue(), durable=False)
    return path


def _draw(index: Index, groups: Sequence[Sequence[int]]) -> Image.Image:
    shown = groups[:_MOST_GROUPS]
    columns = min(max(map(len, shown)), _MOST_FRAMES)
    height = _HEIGHT + 2 * _LINE + 2 * _GAP
    title, below = _LINE + 2 * _GAP, _LINE + _GAP if len(groups) > len(shown) else 0
    sheet = Image.new("RGB", (columns * (_WIDTH + _GAP) + _GAP, title + len(shown) * height + below), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    draw.text((_GAP, _GAP), f"Near duplicates: {len(groups)} groups, {sum(map(len, groups))} images", _INK, font)
    for number, rows in enumerate(shown):
        top = title + number * height
        draw.line((_GAP, top - _GAP, sheet.width - _GAP, top - _GAP), _FRAME)
        for column, row in enumerate(rows[:_MOST_FRAMES]):
            left = _GAP + column * (_WIDTH + _GAP)
            sheet.paste(_thumbnail(index, row), (left, top))
            name, note = _captions(index, rows, column)
            draw.text((left, top + _HEIGHT + 2), _fitted(name, font), _INK, font)
            draw.text((left, top + _HEIGHT + 2 + _LINE), _fitted(note, font), _FAINT, font)
    if below:
        draw.text((_GAP, sheet.height - below - _GAP // 2), f"and {len(groups) - len(shown)} more", _INK, font)
    return sheet


def _thumbnail(index: Index, row: int) -> Image.Image:
    """The frame in its own proportions, centred in a cell."""
    picture = as_picture(index.frame(row)).convert("RGB")
    sides = index.table.loc[row, ["width", "height"]].to_numpy(dtype=float)
    width, height = (max(1, round(side)) for side in sides * min((_WIDTH, _HEIGHT) / sides))
    cell = Image.new("RGB", (_WIDTH, _HEIGHT), _FRAME)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    cell.paste(picture, ((_WIDTH - width) // 2, (_HEIGHT - height) // 2))
    return cell


def _captions(index: Index, rows: Sequence[int], column: int) -> tuple[str, str]:
    site, case, text = (str(index.table[name].iat[rows[column]]) for name in ("site", "case", "near_hash"))
    first = str(index.table["near_hash"].iat[rows[0]])
    note = f"{hash_distance(first, text)} of 255 bits differ" if column else f"{len(rows)} frames"
    if column == _MOST_FRAMES - 1 and len(rows) > _MOST_FRAMES:
        note = f"{note}; {len(rows) - _MOST_FRAMES} frames more"
    return f"{site} / {case}", note


def _fitted(text: str, font: Font) -> str:
    """Text that the font has glyphs for, its middle left out where it is too long: names differ at their ends."""
    plain = (sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    text = "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in plain)
    shown, kept = text, min(len(text), _WIDTH)
    while font.getlength(shown) > _WIDTH and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return shown
