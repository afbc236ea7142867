import json
import os
import shutil
from functools import partial

import pytest
from datasets import load_from_disk

from pipeline.errors import UserError
from pipeline.stages.preprocess import preprocess
from tests.stages.labelled import ROWS, config_in, write
from tests.tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture
def config_of(tmp_path, backbone):
    return partial(config_in, tmp_path, backbone)


def test_manifest_and_rows(tmp_path, config_of):
    write(tmp_path / "train.tsv", ROWS)
    test = write(tmp_path / "test.tsv", [("a new text", "bad")])
    config = config_of(test=test)
    manifest = preprocess(config)
    assert manifest == json.loads(config.run_dir.manifest_file.read_text())
    assert manifest["version"] == 2 and manifest["labels"] == ["bad", "good"] and manifest["has_pair"] is False
    lengths = [len(tiny_tokenizer()(text)["input_ids"]) for text, _ in ROWS]
    train = {
        "rows": 4,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "truncated": 0,
        "per_label": {"bad": 2, "good": 2},
    }
    assert manifest["splits"]["train"] == train and manifest["warnings"] == []
    rows = load_from_disk(str(config.run_dir.data / "train"))
    assert rows["label"][:] == [1, 0, 1, 0] and rows["length"][:] == lengths and rows["row"][:] == [1, 2, 3, 4]
    assert rows["text"][:] == [text for text, _ in ROWS]
    assert sorted(path.name for path in config.run_dir.data.iterdir()) == [
        "SHA256SUMS",
        "manifest.json",
        "test",
        "train",
    ]
    assert [path.name for path in config.run_dir.path.iterdir()] == ["data"]


def test_current_is_left_alone_and_stale_says_what_changed(tmp_path, config_of, caplog):
    write(tmp_path / "train.tsv", ROWS)
    first = preprocess(config_of())
    before = os.stat(config_of().run_dir.manifest_file).st_mtime_ns
    with caplog.at_level("INFO"):
        assert preprocess(config_of(run={"seed": 5})) == first
        assert "is current" in caplog.text
        assert os.stat(config_of().run_dir.manifest_file).st_mtime_ns == before
        preprocess(config_of(max_length=32))
        assert "is stale (data.max_length was '64', now '32')" in caplog.text
        write(tmp_path / "train.tsv", [*ROWS, ("more", "good")])
        assert preprocess(config_of(max_length=32))["splits"]["train"]["rows"] == 5
        assert "is stale (data.train was" in caplog.text
        shutil.rmtree(config_of().run_dir.data / "train")
        assert preprocess(config_of(max_length=32))["splits"]["train"]["rows"] == 5
        assert "is not what was written (SHA256SUMS)" in caplog.text


def test_test_limit_draws_the_same_rows_for_every_seed(tmp_path, config_of):
    write(tmp_path / "train.tsv", [(f"text {n}", "ab"[n % 2]) for n in range(4)])
    write(tmp_path / "test.tsv", [(f"other {n}", "ab"[n % 4 == 0]) for n in range(40)])
    kept = []
    for seed in (0, 1):
        run = {"seed": seed, "dir": str(tmp_path / f"run-{seed}")}
        config = config_of(run=run, test=str(tmp_path / "test.tsv"), test_limit=8)
        assert preprocess(config)["splits"]["test"]["per_label"] == {"a": 6, "b": 2}
        kept.append(load_from_disk(str(config.run_dir.data / "test"))["row"][:])
    assert kept[0] == kept[1]


def test_train_limit_depends_on_the_seed_and_keeps_shares(tmp_path, config_of):
    write(tmp_path / "train.tsv", [(f"text {n}", "ab"[n % 4 == 0]) for n in range(40)])

    def kept(seed):
        config = config_of(run={"seed": seed}, train_limit=8)
        assert preprocess(config)["splits"]["train"]["per_label"] == {"a": 6, "b": 2}
        return load_from_disk(str(config.run_dir.data / "train"))["row"][:]

    first = kept(0)
    assert kept(1) != first and kept(0) == first
    with pytest.raises(UserError, match=r"data\.train_limit is 1, less than one row for each of the 2 labels"):
        preprocess(config_of(train_limit=1))


def test_every_warning(tmp_path, config_of):
    write(tmp_path / "train.tsv", [("a gripping film " * 20, "0"), ("Thin!", "1"), ("again", "1")])
    test = write(tmp_path / "test.tsv", [("thin", "1"), ("new", "0")])
    manifest = preprocess(config_of(test=test, labels={"names": ["0", "1", "2"]}))
    assert manifest["warnings"] == [
        "no training text has the label(s) '2'",
        "the labels are numbers, which say nothing to the backbone: give them words with labels.names",
        "1 test texts are in train too: row 1",
        "1 of 3 train texts were cut to data.max_length=64 tokens",
    ]


def test_integer_labels_take_their_names(tmp_path, config_of):
    write(tmp_path / "train.tsv", [("x", "1"), ("y", "0"), ("z", "1")])
    config = config_of(labels={"names": ["bad", "good"]})
    assert preprocess(config)["labels"] == ["bad", "good"]
    assert load_from_disk(str(config.run_dir.data / "train"))["label"][:] == [1, 0, 1]


@pytest.mark.parametrize(
    ("train", "test", "labels", "data", "complaints"),
    [
        (
            ROWS,
            [("x", "godo")],
            {},
            {},
            ["test has labels that are neither", "'godo' (nearest: 'good') in 1 rows, first row 1"],
        ),
        (
            ROWS,
            ROWS,
            {"names": ["good", "fine"]},
            {},
            ["train has labels", "test has labels", "'bad' in 2 rows, first row 2 (line 3)"],
        ),
        ([("x", "a"), ("y", "a")], None, {}, {}, ["all training texts have the label 'a'"]),
        ([("", "a")], [("x",)], {}, {}, ["train.tsv: 1 of 1 rows", "test.tsv: 1 of 1 rows"]),
        (ROWS, None, {"texts": {"goood": "x"}}, {}, ["'goood', which is not a label (nearest: 'good')"]),
        (ROWS, None, {}, {"max_length": 129}, ["the backbone takes 128 tokens: set data.max_length=128"]),
        (ROWS, None, {}, {"label": "labels"}, ["no column 'labels' (data.label) (nearest: 'label')"]),
        (ROWS, None, {}, {"validation": "nowhere.csv"}, ["data.validation: nowhere.csv cannot be read (No such file"]),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(tmp_path, config_of, train, test, labels, data, complaints):
    write(tmp_path / "train.tsv", train)
    if test:
        data = data | {"test": write(tmp_path / "test.tsv", test)}
    config = config_of(labels=labels, **data)
    with pytest.raises(UserError) as fault:
        preprocess(config)
    assert "\n" not in str(fault.value)
    assert [complaint for complaint in complaints if complaint not in str(fault.value)] == []
    assert list(config.run_dir.path.iterdir()) == []


def test_a_fault_leaves_the_old_data(tmp_path, config_of):
    write(tmp_path / "train.tsv", ROWS)
    manifest = preprocess(config_of())
    write(tmp_path / "train.tsv", [*ROWS, ("", "good")])
    with pytest.raises(UserError, match="'text' is empty"):
        preprocess(config_of())
    assert json.loads(config_of().run_dir.manifest_file.read_text()) == manifest
    assert len(load_from_disk(str(config_of().run_dir.data / "train"))) == 4


def test_a_backbone_without_config_is_refused(tmp_path, config_of, backbone):
    write(tmp_path / "train.tsv", ROWS)
    config = config_of()
    tiny_tokenizer().save_pretrained(tmp_path / "bare")
    bare = config.model_copy(
        update={"backbone": config.backbone.model_copy(update={"name_or_path": str(tmp_path / "bare")})}
    )
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        preprocess(bare)


def test_killed_between_two_renames_the_old_data_comes_back(tmp_path, config_of):
    write(tmp_path / "train.tsv", ROWS)
    run, manifest = config_of().run_dir, preprocess(config_of())
    before = os.stat(run.manifest_file).st_ino
    run.data.rename(run.path / ".data.old")
    assert preprocess(config_of()) == manifest and os.stat(run.manifest_file).st_ino == before
    assert [path.name for path in run.path.iterdir()] == ["data"]
