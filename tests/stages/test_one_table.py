"""One csv, not quite clean, is all there is: split, faulty rows left out, and every stage on it.

covers stages/preprocess, data/shares
"""

import json
import random

import pytest
from datasets import load_from_disk

from pipeline.comparison.config import load_comparison
from pipeline.config import parse_config
from pipeline.core.checksums import write_sums
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.yaml import dump_yaml
from pipeline.engine.backbone import backbone_of
from pipeline.engine.provenance import current_data, texts_have_changed
from pipeline.reports.run import load_run, mistakes
from pipeline.stages.dry_run import plan
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from tests.support.labelled import config_in
from tests.support.tiny import save_tiny
from tests.support.tiny_run import TEXTS, tiny_run

KINDS = {"sport": "match", "business": "market", "science": "star"}
FAULTS = {13: ",sport", 24: "only one", 35: "a text without a label,", 46: "text,label"}
"""By line."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone"), "llama_gqa")


@pytest.fixture
def table(tmp_path):
    """92 good rows, of which 12 are there twice, and 4 faulty ones; each text names its line."""
    lines = ["text,label"]
    kinds = list(KINDS)
    for line in range(2, 86):
        kind = kinds[line % 3]
        lines.append(FAULTS.get(line, f"one {KINDS[kind]} of line {line},{kind}"))
    lines += random.Random(0).sample(
        [row for number, row in enumerate(lines, 1) if number > 1 and number not in FAULTS], 12
    )
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "all.csv"


def config_of(tmp_path, backbone, **keys):
    run = {"dir": str(tmp_path / keys.pop("run", "run")), "seed": keys.pop("seed", 0)}
    settings = {"train": str(tmp_path / "all.csv"), "split": [0.2, 0.1], "on_error": "skip"} | keys
    return config_in(tmp_path, backbone, run=run, **settings)


def rows_of(config):
    return {split: load_from_disk(str(config.run_dir.data / split)) for split in ("train", "validation", "test")}


def test_faulty_rows_are_left_out_and_the_others_shared_out(tmp_path, backbone, table):
    config = config_of(tmp_path, backbone)
    manifest = preprocess(config)
    assert manifest["cut"] == ["validation", "test"] and manifest["skipped"] == {"train": 4}
    assert list(manifest["splits"]) == ["train", "validation", "test"] and list(manifest["sources"]) == ["train"]
    counts = {split: found["rows"] for split, found in manifest["splits"].items()}
    assert sum(counts.values()) == 92 and abs(counts["validation"] - 18) <= 1 and abs(counts["test"] - 9) <= 1
    left_out = [json.loads(line) for line in (config.run_dir.data / "skipped.jsonl").read_text().splitlines()]
    assert [(row["split"], row["row"], row["line"]) for row in left_out] == [("train", n - 1, n) for n in FAULTS]
    assert left_out[0]["reason"] == "'text' is empty" and left_out[3]["reason"].startswith("is the header again")
    assert any("4 of 96 rows are faulty" in warning for warning in manifest["warnings"])
    lines, texts = table.read_text().splitlines(), {}
    for split, rows in rows_of(config).items():
        for row, text in zip(rows["row"], rows["text"], strict=True):
            assert lines[row].startswith(f"{text},")  # row 1 is on line 2
            assert texts.setdefault(text, split) == split
    assert not any("too:" in warning for warning in manifest["warnings"])


def current(config):
    """As later stages find data/."""
    known = backbone_of(config.backbone, config.data)
    return current_data(config.run_dir, config.data, config.labels, config.run.seed, known)


def test_the_splits_are_those_of_every_seed_and_the_manifest_is_current(tmp_path, backbone, table, caplog):
    first = config_of(tmp_path, backbone)
    other = config_of(tmp_path, backbone, run="other", seed=5, train_limit=20)
    made = preprocess(first)
    preprocess(other)
    assert [rows_of(first)[split]["row"][:] for split in ("validation", "test")] == [
        rows_of(other)[split]["row"][:] for split in ("validation", "test")
    ]
    assert set(rows_of(other)["train"]["row"]) < set(rows_of(first)["train"]["row"])
    assert current(first) == made
    with caplog.at_level("INFO"):
        assert preprocess(first) == made and "is current" in caplog.text
        preprocess(config_of(tmp_path, backbone, split=[0.1, 0.1]))
        assert "data.split was" in caplog.text
    with pytest.raises(UserError, match=r"data.split was"):
        current(first)
    assert not texts_have_changed(first.data, "test", made)
    table.write_text(table.read_text() + "one more,sport\n")
    assert texts_have_changed(first.data, "test", made)


def test_without_the_keys_nothing_changes(tmp_path, backbone, table):
    """Data that an older version made stay current."""
    table.write_text("\n".join(row for n, row in enumerate(table.read_text().splitlines(), 1) if n not in FAULTS))
    config = config_of(tmp_path, backbone, split=None, on_error="stop")
    manifest = preprocess(config)
    assert manifest["cut"] == [] and manifest["skipped"] == {}
    for part in ("data.split", "data.on_error"):
        del manifest["fingerprint"][part]
    write_json(config.run_dir.manifest_file, manifest)
    write_sums(config.run_dir.data)
    assert preprocess(config) == manifest == current(config)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('text,label\na,x\n"b,y\nc,x\n', "what is behind it cannot be read"),
        ("text,label\n,x\n,y\n", "2 of 2 rows are faulty"),
        ("text,label\n,y\n" + "".join(f"{n},x\n" for n in range(12)), "all training texts have the label 'x'"),
    ],
)
def test_what_cannot_be_left_out_is_refused(tmp_path, backbone, content, complaint):
    (tmp_path / "all.csv").write_text(content)
    config = config_of(tmp_path, backbone)
    with pytest.raises(UserError, match=complaint):
        preprocess(config)
    assert not config.run_dir.data.exists()


def test_a_split_that_is_there_twice_or_nowhere_is_refused(tmp_path, backbone):
    with pytest.raises(UserError, match=r"data.split cuts the test texts from data.train, but data.test is given too"):
        config_of(tmp_path, backbone, test="b.csv")
    assert config_of(tmp_path, backbone, split=0.2, test="b.csv").data.splits == ["train", "validation", "test"]
    values = config_of(tmp_path, backbone).model_dump(mode="json", exclude={"backbone": {"trust_remote_code"}})
    values["train"]["early_stopping_patience"] = 3
    parse_config(values)
    values["data"]["split"] = [0, 0.1]
    with pytest.raises(
        UserError, match=r"early_stopping_patience needs validation texts: set data.validation, or data.split"
    ):
        parse_config(values)


def test_the_dry_run_and_comparisons_take_it(tmp_path, backbone, table, capsys):
    plan(config_of(tmp_path, backbone))
    assert "validation: 18 rows" in capsys.readouterr().out
    comparison = {
        "dir": str(tmp_path / "compared"),
        "base": {"backbone": {"name_or_path": str(backbone)}},
        "backbones": {"tiny": {}},
        "datasets": {"one": {"data": {"train": str(table), "split": [0.1, 0.1], "on_error": "skip"}}},
        "methods": {"majority": {}, "lt_prefix": {}},
    }
    (tmp_path / "compare.yaml").write_text(dump_yaml(comparison))
    assert len(load_comparison(tmp_path / "compare.yaml").methods) == 2
    with pytest.raises(UserError, match=r"or data.split"):
        load_comparison(tmp_path / "compare.yaml", ["datasets.one.data.split=0.1"])


def test_a_report_shows_the_texts_of_the_table(tmp_path):
    rows = [
        (f"{text} number {number}", label) for label, texts in TEXTS.items() for text in texts for number in range(3)
    ]
    (tmp_path / "all.csv").write_text("text,label\n,sport\n" + "".join(f"{text},{label}\n" for text, label in rows))
    data = {
        "train": str(tmp_path / "all.csv"),
        "validation": None,
        "test": None,
        "split": [0.3, 0.3],
        "on_error": "skip",
    }
    config = tiny_run(tmp_path, data=data)
    evaluate(config)
    config.run_dir.write_config(config.to_kept_yaml())
    run = load_run(config.run_dir.path)
    found, why = mistakes(run, texts=True)
    assert why == "" and found
    for row in found:
        assert row["texts"] == [rows[row["row"] - 2][0]]  # row 1 is the faulty one
