"""preprocess from end to end: what it writes, what it refuses and warns of, when it is current."""

import json
import os
import shutil
from functools import partial

import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_from_disk

from pipeline.core.checksums import check_sums, write_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.ownership import MARK
from pipeline.data import labelled
from pipeline.stages.preprocess import preprocess
from tests.support.labelled import ROWS, config_in, write
from tests.support.tiny import save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("backbone"), "bert")


@pytest.fixture
def config_of(tmp_path, backbone):
    return partial(config_in, tmp_path, backbone)


def names_in(run):
    """What is in a run directory beside the mark."""
    return sorted(path.name for path in run.path.iterdir() if path.name != MARK)


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
    written = sorted(path.name for path in config.run_dir.data.iterdir())
    assert written == ["SHA256SUMS", "manifest.json", "test", "train"]
    assert names_in(config.run_dir) == ["data"]


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
        "the labels are numbers, which say nothing to the backbone: give them words with labels.names or labels.texts "
        "(from Python: hypotheses)",
        "1 test texts are in train too: row 1",
        "1 of 3 train texts were cut to data.max_length=64 tokens",
    ]


def test_integer_labels_take_their_names(tmp_path, config_of):
    write(tmp_path / "train.tsv", [("x", "1"), ("y", "0"), ("z", "1")])
    config = config_of(labels={"names": ["bad", "good"]})
    assert preprocess(config)["labels"] == ["bad", "good"]
    assert load_from_disk(str(config.run_dir.data / "train"))["label"][:] == [1, 0, 1]


def write_ids(path, rows, names):
    """A Parquet file of labels by id, with the names of the ids."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    texts, labels = zip(*rows, strict=True)
    Dataset.from_dict({"text": texts, "label": list(map(names.index, labels))}, features=features).to_parquet(path)
    return str(path)


def test_ids_are_read_by_the_names_of_their_own_file(tmp_path, config_of):
    train = write_ids(tmp_path / "train.parquet", ROWS, ["good", "bad", "fair"])
    test = write_ids(tmp_path / "test.parquet", [("x", "bad"), ("y", "good")], ["bad", "good"])
    config = config_of(train=train, test=test)
    manifest = preprocess(config)
    assert manifest["labels"] == ["good", "bad", "fair"]
    assert manifest["splits"]["test"]["per_label"] == {"good": 1, "bad": 1, "fair": 0}
    assert load_from_disk(str(config.run_dir.data / "test"))["label"][:] == [1, 0]
    config = config_of(train=train, test=test, labels={"names": ["fair", "bad", "good"]})
    preprocess(config)
    assert load_from_disk(str(config.run_dir.data / "train"))["label"][:] == [2, 1, 2, 1]
    with pytest.raises(UserError, match=r"train.parquet: its own label names .* not all in labels.names: 'fair'"):
        preprocess(config_of(train=train, test=test, labels={"names": ["bad", "good"]}))


def test_one_label_in_two_spellings_is_one_and_two_by_case_are_noticed(tmp_path, config_of):
    write(
        tmp_path / "train.tsv", [("w", "caf\u00e9  noir"), ("x", "cafe\u0301\u00a0noir"), ("y", "News"), ("z", "news")]
    )
    test = write(tmp_path / "test.tsv", [("v", "\ufeffcafe\u0301 noir")])
    manifest = preprocess(config_of(test=test))
    assert manifest["labels"] == ["News", "caf\u00e9 noir", "news"]
    assert manifest["splits"]["train"]["per_label"] == {"News": 1, "caf\u00e9 noir": 2, "news": 1}
    assert manifest["warnings"] == ["'News' and 'news' are different labels, but differ by case or style alone"]


def test_numbers_that_could_be_indices_too_are_noticed(tmp_path, config_of):
    write(tmp_path / "train.tsv", [("x", "1"), ("y", "0")])
    manifest = preprocess(config_of(labels={"names": ["1", "0"]}))
    assert manifest["splits"]["train"]["per_label"] == {"1": 1, "0": 1}
    assert load_from_disk(str(config_of().run_dir.data / "train"))["label"][:] == [0, 1]
    assert (
        manifest["warnings"][1] == "the numbers in train are taken as the names in labels.names, not as indices into it"
    )


def made_by_an_older_version(run, test_labels=None):
    """Turns data/ into that of version 1, with these labels in its test split."""
    if test_labels is not None:
        rows = load_from_disk(str(run.data / "test")).to_dict() | {"label": test_labels}
        shutil.rmtree(run.data / "test")
        Dataset.from_dict(rows).save_to_disk(run.data / "test")
    write_json(run.manifest_file, read_json(run.manifest_file) | {"version": 1})
    write_sums(run.data)


def test_older_data_with_right_labels_stay_current(tmp_path, config_of, caplog):
    rows = [(f"text {n}", "  b" if n % 3 else "a") for n in range(40)]
    write(tmp_path / "train.tsv", rows)
    config = config_of(train_limit=10, test=write(tmp_path / "test.tsv", rows[::-1]), test_limit=5)
    made = preprocess(config)
    made_by_an_older_version(config.run_dir)
    before = os.stat(config.run_dir.data / "train").st_ino
    with caplog.at_level("INFO"):
        assert preprocess(config) == made == read_json(config.run_dir.manifest_file)
    assert "is current" in caplog.text and os.stat(config.run_dir.data / "train").st_ino == before
    check_sums(config.run_dir.data)


def test_older_data_with_wrong_labels_are_refused(tmp_path, config_of):
    train = write_ids(tmp_path / "train.parquet", ROWS, ["bad", "good"])
    test = write_ids(tmp_path / "test.parquet", [("x", "bad"), ("y", "bad"), ("z", "good")], ["good", "bad"])
    config = config_of(train=train, test=test)
    preprocess(config)
    made_by_an_older_version(config.run_dir, [1, 1, 0])
    for _ in range(2):
        with pytest.raises(UserError, match=r"test row 1 was 'good', is 'bad'; test row 2 .* choose another run.dir"):
            preprocess(config)


def test_older_data_of_a_file_that_is_refused_today_are_refused(tmp_path, config_of, monkeypatch):
    write(tmp_path / "train.tsv", ROWS)
    config = config_of(test=write(tmp_path / "test.tsv", [("x", "1")]))
    with monkeypatch.context() as older:  # which took the label for an index
        older.setattr(labelled, "label_indices", lambda split, file, labels: {"good": 1, "bad": 0, "1": 1})
        preprocess(config)
    made_by_an_older_version(config.run_dir)
    with pytest.raises(
        UserError, match=r"test.tsv: test has labels .* '1' in 1 rows.* older version .* made '.*run/data'"
    ):
        preprocess(config)


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
        (
            ROWS,
            [("x", "1")],
            {},
            {},
            ["'1' in 1 rows, first row 1 (line 2)", "a number is an index only into labels.names"],
        ),
        (ROWS, [("x", "1"), ("y", "bad")], {"names": ["bad", "good"]}, {}, ["only where all labels of its file are"]),
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
    assert names_in(config.run_dir) == []


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


def test_a_token_without_an_embedding_is_refused_before_a_text_is_read(tmp_path, backbone):
    write(tmp_path / "train.tsv", ROWS)
    shutil.copytree(backbone, tmp_path / "grown")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{number}" for number in range(200)])
    tokenizer.save_pretrained(tmp_path / "grown")
    with pytest.raises(UserError, match="rows 0 to 319, does not know: 'word"):
        preprocess(config_in(tmp_path, tmp_path / "grown"))


def test_killed_between_two_renames_the_old_data_comes_back(tmp_path, config_of):
    write(tmp_path / "train.tsv", ROWS)
    run, manifest = config_of().run_dir, preprocess(config_of())
    before = os.stat(run.manifest_file).st_ino
    run.data.rename(run.path / ".ltune-data.old")
    assert preprocess(config_of()) == manifest and os.stat(run.manifest_file).st_ino == before
    assert names_in(run) == ["data"]
