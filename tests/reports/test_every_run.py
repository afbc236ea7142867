"""The page of each method's run, of two labels and of many, with validation texts and without.

covers reports/run
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from transformers import AutoModelForCausalLM

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.methods import METHOD_NAMES
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.report import report
from pipeline.stages.train import train
from tests.support.browser import needs_browser, open_page, start_browser
from tests.support.tiny import save_tiny
from tests.support.tiny_run import tiny_config

MANY = 12
KINDS = [(2, True), (MANY, False)]
"""Labels, and whether there are validation texts."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("reported") / "backbone", "llama_gqa", AutoModelForCausalLM)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def prepared(request: pytest.FixtureRequest, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run directory with texts, which are the same for all methods, and label states, which nearly are."""
    count, is_validated = request.param
    folder = tmp_path_factory.mktemp("prepared")
    config = tiny_config(
        folder,
        backbone={"name_or_path": str(backbone)},
        data={} if is_validated else {"validation": None},
        train={"max_steps": 2, "eval_every": 2, "batch_size": 4, "log_every": 1},
        logging={"trackers": ["jsonl"]},
    )
    for split in ("train", "validation", "test"):
        shown = count if split == "train" else min(count, 4)
        rows = [f"{split} text {label}\tkind {label:02}\n" for label in range(shown)]
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + "".join(rows))
    config.run_dir.create()
    preprocess(config)
    encode_labels(config)
    return config


@pytest.fixture(scope="module", params=METHOD_NAMES)
def config(request: pytest.FixtureRequest, prepared: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of one method, in a copy of what is prepared, and its page."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    shutil.copytree(prepared.run_dir.path, folder)
    values = prepared.model_dump() | {"run": {"dir": str(folder)}, "method": {"name": request.param}}
    config = RunConfig.model_validate(values)
    encode_labels(config)
    if config.method.wants_states:
        encode_texts(config)
    train(config)
    evaluate(config)
    report(str(folder))
    return config


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


def test_every_method_makes_a_page(config: RunConfig) -> None:
    page = (config.run_dir.path / "report.html").read_text()
    takes_steps, is_validated = config.method.takes_steps, config.data.validation is not None
    assert ('id="curves"' in page) == ('href="#curves"' in page) == takes_steps
    assert ("Validation metrics as a table" in page) == (takes_steps and is_validated)
    assert ("The run has no validation split" in page) == (takes_steps and not is_validated)
    assert ("with temperature" in page) == is_validated
    assert ("no temperature fitted" in page) == (not is_validated)
    assert ("The map as a table" in page) == (config.method.open_labels and takes_steps and "kind 11" in page)
    assert ("learning rate 0.001" in page) == takes_steps


@needs_browser
@pytest.mark.parametrize("config", ["prompt", "prefix", "majority"], indirect=True)
def test_it_is_drawn_in_a_browser(config: RunConfig, browser: Browser) -> None:
    """Two points are not joined: the table has them. Every number at an axis stands beside something."""
    with open_page(browser, config.run_dir.path / "report.html") as page:
        for picture in page.locator("figure > div:visible > svg").all():
            assert picture.locator("path[fill], path[stroke]").count() >= 1
        assert page.locator("nav a").count() == page.locator("main > section:not(#results)").count()
        assert page.locator(".role-axis-tick").count() == 0 and page.locator("#curves figure").count() == 0
        shown = page.locator("#curves table").first.locator("tbody td").all_text_contents()
    assert shown[::2] == (["1", "2"] if config.method.takes_steps else [])


@pytest.mark.parametrize("prepared", [(2, True)], indirect=True)
@pytest.mark.parametrize("config", ["majority"], indirect=True)
@pytest.mark.parametrize(
    "name",
    ["evaluation/metrics.json", "evaluation/predictions.parquet", "evaluation/SHA256SUMS", "adapter/labels.json"],
)
def test_what_was_changed_is_not_shown(config: RunConfig, tmp_path: Path, name: str) -> None:
    shutil.copytree(config.run_dir.path, tmp_path / "run")
    file = tmp_path / "run" / name
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"accuracy": 0', b'"accuracy": 1') if b"accuracy" in content else content + b" ")
    with pytest.raises(UserError, match="is not what was written"):
        report(str(tmp_path / "run"))
