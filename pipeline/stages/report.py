"""Writes report.html: everything a run came to, on one page that needs no network."""

from pathlib import Path

from pipeline.core.output import check_output
from pipeline.core.run_dir import RunDir
from pipeline.data.fingerprint import sources_of
from pipeline.reports.page import page_path, write_page
from pipeline.reports.run import load_run
from pipeline.reports.run_page import page_values


def report(
    run: str,
    output: str | None = None,
    *,
    texts: bool = True,
    trust_remote_code: bool = False,
) -> Path:
    """Writes the page of a run to `output`, or report.html in the run directory; gives its path.

    `texts`: show those of the mistakes. `trust_remote_code`: run the code that ships with the backbone.
    Raises UserError where the run has not been evaluated, or a file of it is damaged.
    """
    run_dir = RunDir(run)
    artefacts = [run_dir.data, run_dir.labels, run_dir.adapter, run_dir.adapter_final, run_dir.evaluation, run_dir.logs]
    path = page_path(output, [run_dir.path], [*artefacts, run_dir.checkpoints])
    found = load_run(run_dir.path, trust_remote_code)
    check_output(str(path), [found.config.backbone.location, *sources_of(found.config.data).values()])
    values = page_values(found, run_dir, texts=texts)
    write_page(path, "run.html.j2", title=run_dir.path.resolve().name, **values)
    return path
