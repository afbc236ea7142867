"""One self-contained HTML page: template, style, pictures and data in one file that loads nothing."""

import base64
import hashlib
import logging
import re
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


def write_page(path: Path, template: str, *, static: bool = False, **values: Any) -> None:
    """Renders a page into its file, and says where it is."""
    page = render(template, static=static, **values)
    with opened_output(str(path)) as write:
        write(page)
    log.info("report: %s (%.1f MB)", path, len(page.encode()) / 1e6)


def render(template: str, *, static: bool = False, **values: Any) -> str:
    """The page that a template of this folder makes of the values. All of them are escaped: labels and texts are data,
    and what would turn or hide the words around them is written out.

    Its pictures are drawn in the browser, and tell metrics where the pointer is; or here, where it is `static`. The
    page's content security policy lets no script run but its own two (`static`: none), and nothing be loaded.
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
    scripts = [] if static else [_library(), (HERE / "draw.js").read_text(encoding="utf-8")]
    return environment.get_template(template).render(
        **values,
        static=static,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def _shown(value: Any) -> Any:
    """Not `Markup`, which is our own."""
    return visible(value, keep="\n\t") if type(value) is str else value


def drawn(spec: dict[str, Any]) -> Markup:
    """The picture of a Vega-Lite specification, as an SVG element. Vega escapes the labels in it."""
    svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return Markup(visible(svg.replace("><", ">\n<"), keep="\n"))


def as_file(spec: dict[str, Any]) -> str:
    """The same as an SVG file, which has no style sheet: in the page's colours on light paper."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[\w-]+): (#\w+);", style.partition("}")[0]))
    svg = str(drawn({**spec, "config": {**spec["config"], "background": "var(--paper)"}}))
    return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], svg)


@cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed, as text for a script element."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert isinstance(bundle, str) and "</script" not in bundle and "<!--" not in bundle
    return bundle


def _policy(scripts: list[str]) -> str:
    """Vega compiles its expressions with `Function`, hence 'unsafe-eval'; tooltips bring a style element."""
    nothing = "default-src 'none'; style-src 'unsafe-inline'"
    if not scripts:
        return nothing
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"{nothing}; img-src data:; script-src {allowed} 'unsafe-eval'"
