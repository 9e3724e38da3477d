"""How Sphinx builds the documentation: offline, and with every warning an error; see ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fedgs

highlight_language = "none"
project = "fedgs"
author = "The fedgs developers"
release = fedgs.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_fedgs"]
exclude_patterns = ["results/polypgen-128"]
default_role = "py:obj"
smartquotes_action = "D"  # dashes, no quotes
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fedgs {release}"
html_math_renderer = "svg"
html_static_path = ["_static"]
html_css_files = ["fedgs.css"]
html_theme_options = {
    f"{theme}_css_variables": {
        "color-api-name": "var(--color-brand-content)",
        "color-api-pre-name": "var(--color-foreground-muted)",
    }
    for theme in ("light", "dark")
}
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "native"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = ["Source"]

# Types of other packages: their inventories would have to be downloaded.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|pandas|matplotlib|PIL|click|rich)\..*"),
    ("py:.*", r"(pathlib|collections|contextlib|multiprocessing|typing|types)\..*"),
]
nitpick_ignore = [
    # The same, where a module names them as it imports them for type checkers.
    *(
        ("py:class", name)
        for name in (
            "np.bool_",
            "np.float64",
            "Tensor",
            "Module",
            "nn.Module",
            "Optimizer",
            "Parameter",
            "Path",
            "Tensors",
            "NDArray",
            "np.float32",
        )
    ),
    # "An array or a tensor", a type variable; it has no docstring to link to.
    ("py:class", "Mask"),
    ("py:class", "models.Objective"),
    ("py:class", "fedgs.metrics.functional.Mask"),
]
