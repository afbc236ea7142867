"""One self-contained HTML page: template, style, pictures and data in one file that loads nothing."""

import base64
import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup, escape

from pipeline.core.errors import UserError
from pipeline.core.escapes import visible
from pipeline.core.output import check_output, opened_output

HERE = Path(__file__).parent

_TAG = re.compile(r'<\w(?:[^>"]|"[^"]*")*>')
_MARKS = re.compile(r' (?:role|aria-label|aria-roledescription)="[^"]*"')
_DIGITS = re.compile(r"\d+\.\d{3,}")
_NOT_XML = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}
"""Characters that are none, which XML refuses as it does most controls."""

log = logging.getLogger(__name__)


def page_path(output: str | None, folders: Sequence[Path], artefacts: Sequence[Path] = ()) -> Path:
    """Where to write the page of these runs or comparisons: `output`, or report.html in the first of their folders.

    UserError where it would take the place of a file in these folders that is no page, or be written into one of the
    `artefacts`, and where report.html is a link, which would let the folder's author choose a file that is replaced.
    """
    path = Path(output) if output else folders[0] / "report.html"
    if not output and path.is_symlink():
        raise UserError(f"'{path}' is a symbolic link: remove it, or say where to write the page, with --output FILE")
    files = [file for folder in folders for file in folder.glob("*") if file.is_file() and file.suffix != ".html"]
    check_output(str(path), [*files, *artefacts])
    return path


def write_page(path: Path, template: str, **values: Any) -> None:
    """Renders a page into its file, and says where it is."""
    page = render(template, **values)
    with opened_output(str(path)) as write:
        write(page)
    log.info("report: %s (%.1f MB)", path, len(page.encode()) / 1e6)


def render(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of the values. All of them are escaped: labels and texts are data,
    and what would turn or hide the words around them is written out.

    Its pictures are drawn here, so that the page is whole without a script. Its content security policy lets no script
    run but its own, which sorts tables, and nothing be loaded.
    """
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = drawn
    script = (HERE / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **values,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _shown(value: Any) -> Any:
    """Not `Markup`, which is our own."""
    return visible(value, keep="\n\t") if type(value) is str else value


def drawn(spec: dict[str, Any]) -> Markup:
    """The picture of a Vega-Lite specification, as an SVG element. Vega escapes the labels in it."""
    svg = vl_convert.vegalite_to_svg(_drawable(spec), allowed_base_urls=[])
    svg = _TAG.sub(_plain, svg)
    # One picture with one description for a screen reader, not hundreds of marks: a table says what they say.
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(spec["description"])}" ', 1)
    return Markup(visible(svg.replace("><", ">\n<"), keep="\n"))


def _drawable(part: Any) -> Any:
    """A part of a specification, with what no SVG can hold written out: at a label with it the process would abort."""
    if isinstance(part, str):
        return visible(part, keep="\n\t").translate(_NOT_XML)
    if isinstance(part, dict):
        return {key: _drawable(value) for key, value in part.items()}
    return list(map(_drawable, part)) if isinstance(part, list) else part


def _plain(tag: re.Match[str]) -> str:
    """A tag without what marks say of themselves, and with hundredths of a pixel."""
    return _DIGITS.sub(lambda number: f"{float(number[0]):.2f}", _MARKS.sub("", tag[0]))


def as_file(spec: dict[str, Any]) -> str:
    """The same as an SVG file, which has no style sheet: in the page's colours on light paper."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#\w+);", style.partition("}")[0]))
    svg = str(drawn({**spec, "config": {**spec["config"], "background": "var(--paper)"}}))
    return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], svg)
