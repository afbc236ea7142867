"""Writes report.html of a comparison: tables, and pictures of differences, convergence and cost."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.reports.comparison import read_comparison
from pipeline.reports.comparison_page import page_values
from pipeline.reports.page import page_path, write_page


def report_comparison(folders: Sequence[str], output: str | None = None) -> Path:
    """Writes the page of one comparison's directory, or of several together, for which `output` is needed.

    It holds numbers alone, no texts. Raises UserError where a directory holds no finished comparison.
    """
    if not output and len(folders) > 1:
        raise UserError("several directories are shown on one page: say where to write it, with --output FILE")
    paths = [Path(folder) for folder in folders]
    path = page_path(output, paths)
    comparison = read_comparison(paths)
    write_page(path, "comparison.html.j2", **page_values(comparison))
    return path
