"""The documents: all in the index, all with a way to the glossary, and what they name exists."""

import re
from pathlib import Path

import pytest

from pipeline.config import RunConfig, config_keys

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), REPOSITORY / "ds_configs" / "README.md", REPOSITORY / "CONTRIBUTING.md"]


def links(page: Path) -> set[Path]:
    found = re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text())
    return {(page.parent / link).resolve() for link in found}


def test_the_index_lists_every_page() -> None:
    there = {file for file in DOCS.iterdir() if file.suffix in (".md", ".html") and file.name != "README.md"}
    assert there - links(DOCS / "README.md") == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_a_page_leads_to_the_glossary_and_the_index(page: Path) -> None:
    found = links(page)
    assert page.name == "glossary.md" or DOCS / "glossary.md" in found
    assert page == DOCS / "README.md" or DOCS / "README.md" in found


@pytest.mark.parametrize("name", ["troubleshooting", "python"])
def test_config_keys_that_a_page_names_exist(name: str) -> None:
    known = {key for key, _, _ in config_keys()}
    text = (DOCS / f"{name}.md").read_text().replace("train.tsv", "")
    named = set(re.findall(rf"\b((?:{'|'.join(RunConfig.model_fields)})\.[a-z_0-9]+)\b", text))
    assert len(named) > 8 and named - known == set()
