"""What the documentation needs beyond Sphinx: formulas without a script, and pages made from the package itself."""

from __future__ import annotations

import html
import inspect
import itertools
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import fedgs
from fedgs.cli import cli
from fedgs.config import settings

_WITHOUT_REFERENCE = {"fedgs.metrics", "fedgs.prediction", "fedgs.report", "fedgs.study"}
"""Packages that hold nothing but their modules; the command line has a page of its own."""


def directive(text_of: Callable[[Path], Iterator[str]]) -> type[SphinxDirective]:
    """Makes a directive that stands for the lines of Markdown which a function gives for the folder of the pages."""

    class Generated(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            text = "\n".join(text_of(Path(self.env.srcdir)))
            return self.parse_text_to_nodes(text, allow_section_headings=True)

    return Generated


def commands(_: Path) -> Iterator[str]:
    """Gives every command with the texts of its --help."""
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=f"fedgs {name}")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield from (
            f"## fedgs {name}",
            "",
            "```text",
            usage,
            "```",
            "",
            _with_flags_as_code(inspect.cleandoc(command.help or "")),
            "",
        )
        for parameter in command.get_params(context):
            flag, description = parameter.get_help_record(context) or ("", "")
            if description:
                yield from (f"`{flag}`", f": {_with_flags_as_code(description).replace('[', '&#91;')}", "")


def _with_flags_as_code(text: str) -> str:
    return re.sub(r"--\w[\w-]*", r"`\g<0>`", text)


def settings_tables(_: Path) -> Iterator[str]:
    """Gives a table for every concern, with a row for every setting."""
    for table, rows in itertools.groupby(settings(), key=lambda row: row[0]):
        yield from ("", f"## {table}", "", "| setting | type | default | meaning |", "| --- | --- | --- | --- |")
        for _table, name, kind, default, description in rows:
            shown = default if isinstance(default, (int, float, str)) else ""
            yield f"| `{name}` | {_type_in_words(kind)} | {shown} | {description} |"


def public_names(_: Path) -> Iterator[str]:
    """Gives a row for every name of `fedgs` itself, with the first sentence of its docstring."""
    yield from ("| name | what it is |", "| --- | --- |")
    for name in fedgs.__all__:
        if name != "__version__":
            thing = getattr(fedgs, name)
            sentence = (thing.__doc__ or "").partition("\n")[0]
            yield f"| {{py:obj}}`{name} <{thing.__module__}.{thing.__qualname__}>` | {sentence} |"


def other_modules(pages: Path) -> Iterator[str]:
    """Gives every module that no other page of the reference has, so that none is forgotten."""
    shown = set(re.findall(r"automodule:: (\S+)", "".join(p.read_text() for p in (pages / "reference").glob("*.md"))))
    found = {module.name for module in pkgutil.walk_packages(fedgs.__path__, "fedgs.")}
    of_command_line = {name for name in found if name.startswith("fedgs.cli")}
    for name in sorted(found - shown - of_command_line - _WITHOUT_REFERENCE):
        yield from (f"## `{name}`", "", "```{eval-rst}", f".. automodule:: {name}", "```", "")


def _type_in_words(kind: Any) -> str:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    words = {int: "integer", float: "number", str: "text"}
    return next((words[option] for option in options if option in words), "names with values")


def formula(latex: str, *, size: float = 1.0) -> str:
    """Draws a formula as SVG, whose letters are outlines: no font is needed, and its colour is that of the text.

    Args:
        latex: What `matplotlib.mathtext` understands of LaTeX.
        size: Relative to the surrounding text.
    """
    font, drawn = FontProperties(size=100, math_fontfamily="cm"), TextToPath()
    text = f"${' '.join(latex.split())}$"
    width, height, depth = drawn.get_text_width_height_descent(text, font, ismath=True)
    corners, codes = drawn.get_text_path(font, text, ismath=True)
    letters, points = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}, {2: 1, 3: 2, 4: 3}
    path, number = [], 0
    while number < len(codes):
        taken = points.get(int(codes[number]), 1)
        xy = " ".join(f"{x:.1f} {-y:.1f}" for x, y in corners[number : number + taken])
        path.append(letters[int(codes[number])] + ("" if codes[number] == 79 else xy))
        number += taken
    em, margin = size / 100, 4
    return (
        f'<svg class="formula" role="img" aria-label="{html.escape(latex, quote=True)}" '
        f'viewBox="{-margin} {depth - height - margin:.1f} {width + 2 * margin:.1f} {height + 2 * margin:.1f}" '
        f'style="width:{(width + 2 * margin) * em:.3f}em;height:{(height + 2 * margin) * em:.3f}em;'
        f'vertical-align:{-(depth + margin) * em:.3f}em"><path d="{"".join(path)}"/></svg>'
    )


def _inline_math(self: Any, node: nodes.math) -> None:
    self.body.append(formula(node.astext(), size=1.05))
    raise nodes.SkipNode


def _block_math(self: Any, node: nodes.math_block) -> None:
    latex = node.astext().replace(r"\frac", r"\dfrac")
    self.body.append(f'<div class="formula">{formula(latex, size=1.1)}</div>')
    raise nodes.SkipNode


def _plain_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, result: str | None
) -> tuple[str | None, str | None] | None:
    """Writes … for a default that is no literal, which Sphinx could not parse, and leaves out what is private."""
    if signature is None:
        return None
    plain = re.sub(r"<[^<>]*(<\w+>)?[^<>]*>", "...", signature)
    return re.sub(r", _\w+: .*?(?=, \w+: |\)$)", "", plain), result


def _colons_are_prose(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keeps Napoleon from taking what stands before a colon for a type; types stand in the signatures here."""
    for number, line in enumerate(lines):
        is_result = number > 0 and lines[number - 1].strip() == "Returns:"
        if is_result or (number == 0 and what in ("attribute", "data")):
            text = line.lstrip()
            lines[number] = f"{line[: len(line) - len(text)]}: {text}"


def _only_a_word(app: Sphinx, env: Any, node: nodes.Element, content: nodes.TextElement) -> nodes.Node | None:
    """Lets `word` in a docstring stay a word where nothing has that name: a column, a file, an argument."""
    return content if node.get("reftype") == "obj" and "fedgs." not in node["reftarget"] else None


def _skip_tuple_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples, which have a docstring of Python's own; the class describes them."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> ExtensionMetadata:
    for made in (commands, settings_tables, public_names, other_modules):
        app.add_directive(made.__name__.replace("_", "-"), directive(made))
    app.add_html_math_renderer("svg", (_inline_math, None), (_block_math, None))
    app.connect("autodoc-process-signature", _plain_signature)
    app.connect("autodoc-process-docstring", _colons_are_prose, priority=400)  # before Napoleon's
    app.connect("autodoc-skip-member", _skip_tuple_fields)
    app.connect("missing-reference", _only_a_word)
    return {"parallel_read_safe": True}
