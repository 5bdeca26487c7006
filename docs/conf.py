"""The documentation site: Markdown pages by MyST, API pages from the docstrings, the furo theme. `make docs` builds it.

The docstrings are prose with a little Markdown in it, not reStructuredText: single backticks mean code, `|x|` and `B*F`
mean themselves, and an indented block is code. `_plain_docstring` translates that, so that no docstring needs markup.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from sphinx.util.docutils import SphinxDirective  # noqa: E402

import pusa  # noqa: E402
from pusa.generation.options import options_of  # noqa: E402

project = "pusa"
author = "The pusa contributors"
project_copyright = author
release = version = pusa.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["api/_templates"]
templates_path = ["api/_templates"]
default_role = "literal"
smartquotes = False  # they make a dash of the two hyphens of an option
highlight_language = "text"

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # CONTRIBUTING.md and CHANGELOG.md are included below a page's own title

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"no-value": True}  # tables and folders would fill the page
autodoc_preserve_defaults = True
autodoc_mock_imports = ["ray", "tensorboard"]  # extras that a build of the site does not need
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
autosummary_generate = True
shutil.rmtree(Path(__file__).parent / "api" / "generated", ignore_errors=True)  # pages of modules that have moved
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"pusa {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7b341e", "color-brand-content": "#9c4221"},
    "dark_css_variables": {"color-brand-primary": "#f6ad83", "color-brand-content": "#f6ad83"},
}

_FIELD = re.compile(r"[a-z_]\w*(, [a-z_]\w*)*: \S")
_COLON = "\ue000"
_CODE = re.compile(r"``[^`]+``|`[^`]+`")


def _escaped(line: str) -> str:
    """The line with everything outside of code protected from reStructuredText."""
    parts, at = [], 0
    for code in _CODE.finditer(line):
        parts += [_protect(line[at : code.start()]), f"``{code.group().strip('`')}``"]
        if re.match(r"\w", line[code.end() :]):
            parts.append("\\ ")  # `matrix`es: markup ends before a space or a sign
        at = code.end()
    return "".join([*parts, _protect(line[at:])])


def _protect(text: str) -> str:
    """Signs that would start markup, except the bullet of a list."""
    bullet = re.match(r"\s*\* ", text)
    start = bullet.end() if bullet else 0
    return text[:start] + re.sub(r"(?<!\\)([*|]|_(?=\W|$))", r"\\\1", text[start:])


def _language(block: list[str]) -> str:
    try:
        ast.parse(textwrap.dedent("\n".join(block)))
    except SyntaxError:
        return "text"
    return "python"


def _plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads it: code stays code, and columns of text stay columns."""
    out: list[str] = []
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
            continue
        if block:
            indented = all(one.startswith("    ") for one in block)
            columns = sum(bool(re.search(r"\S {3,}\S", one)) for one in block) > 1
            section = out and re.match(r"(Args|Attributes|Returns|Raises|Yields|Note):$", out[-1].strip())
            if all(one[0] == " " or _FIELD.match(one) for one in block) and not indented:
                out += [f"  {_escaped(one.strip())}" if one[0] == " " else f"* {_escaped(one)}" for one in block]
            elif (indented and not section and what == "module") or columns:
                margin = "" if indented else "    "
                out += [f".. code-block:: {_language(block)}", "", *(margin + one for one in block)]
            else:
                out += [_escaped(one) for one in block]
        out.append("")
        block = []
    if what in ("attribute", "data", "property"):  # napoleon takes "S, the steps: ..." for a type and a description
        out = [line.replace(":", _COLON) for line in out]
    lines[:] = out


def _colons_back(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def _without_metadata(app: Any, what: str, name: str, obj: Any, options: Any, sig: str | None, ret: str | None) -> Any:
    """The signature with `Annotated[T, ...]` as T: the rest is for programs."""
    while sig and (found := re.search(r"~?(typing|types)\.Annotated\[", sig)):
        depth, comma, at = 1, 0, found.end()
        while depth:
            depth += (sig[at] in "[({") - (sig[at] in "])}")
            comma = at if sig[at] == "," and depth == 1 and not comma else comma
            at += 1
        sig = sig[: found.start()] + sig[found.end() : comma] + sig[at:]
    return sig, ret


class RequestOptions(SphinxDirective):
    """`.. request-options:: Generate` lists the fields of a request that have a help text, and their defaults."""

    required_arguments = 1

    def run(self) -> list[Any]:
        cls = getattr(importlib.import_module("pusa.generation.request"), self.arguments[0])
        lines = []
        for one in dataclasses.fields(cls):
            option = options_of(cls)[one.name][1] if one.name in options_of(cls) else None
            if option is not None and option.help:
                shown = option.default or ("the model's own" if option.of_model else f"``{one.default!r}``")
                default = "" if one.default is dataclasses.MISSING else f" Default: {shown}."
                lines.append(f"* ``{one.name}``: {_escaped(option.help)}{default}")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Any) -> None:
    app.add_directive("request-options", RequestOptions)
    app.connect("autodoc-process-signature", _without_metadata)
    app.connect("autodoc-process-docstring", _plain_docstring, priority=100)  # before napoleon, which has 500
    app.connect("autodoc-process-docstring", _colons_back, priority=900)
