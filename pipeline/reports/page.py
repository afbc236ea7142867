"""One self-contained HTML page: template, style, scripts and data in one file that loads nothing."""

import base64
import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from pipeline.core.escapes import visible
from pipeline.core.output import opened_output

HERE = Path(__file__).parent

log = logging.getLogger(__name__)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Renders a page into its file, and says where it is."""
    page = render(template, **values)
    with opened_output(str(path)) as write:
        write(page)
    log.info("report: %s (%.1f MB)", path, len(page.encode()) / 1e6)


def render(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of the values. All of them are escaped: labels and texts are data,
    and what would turn or hide the words around them is written out.

    Besides, the page's content security policy lets no script run but its own two, and nothing be loaded.
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
    scripts = [_library(), (HERE / "draw.js").read_text(encoding="utf-8")]
    return environment.get_template(template).render(
        **values,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def _shown(value: Any) -> Any:
    """Not `Markup`, which is our own."""
    return visible(value, keep="\n\t") if type(value) is str else value


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed, as text for a script element."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert isinstance(bundle, str) and "</script" not in bundle and "<!--" not in bundle
    return bundle


def _policy(scripts: list[str]) -> str:
    """Vega compiles its expressions with `Function`, hence 'unsafe-eval'; tooltips bring a style element."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed} 'unsafe-eval'"
