"""The predict stage: files and standard input to JSON lines, streaming, whole or not at all."""

import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from tokenizers import normalizers, processors

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.data.unlabelled import Input
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages import predict as stage
from pipeline.stages.predict import predict, split_labels
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.support.tiny_run import TEXTS, tiny_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_run(tmp_path_factory.mktemp("predict"))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_per_text_in_order(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "CHUNK_TEXTS", 4)
    texts = [text for texts in TEXTS.values() for text in texts] + ["ein “Text” mit Ümlaut"]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    assert predict(config.run.dir, str(tmp_path / "texts.txt"), str(tmp_path / "out.jsonl"), device="cpu") == 13
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line["text"] for line in lines] == texts
    expected = LoadedAdapter.load(config.run_dir.adapter, "cpu").predict(texts)
    for line, prediction in zip(lines, expected, strict=True):
        assert list(line) == ["text", "label", "scores", "probabilities"]
        assert line["label"] == prediction.label
        assert line["scores"] == pytest.approx(prediction.scores, rel=1e-4, abs=1e-5)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_standard_input_to_standard_output_with_other_labels(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a goal\n" + b"word " * 99 + b"\n")))
    assert predict(config.run_dir.adapter, "-", labels=["art", "war"], device="cpu") == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [set(line["scores"]) for line in lines] == [{"art", "war"}] * 2
    assert "truncated" not in lines[0] and lines[1]["truncated"] is True


def test_a_padding_token_without_an_embedding_does_no_harm(tmp_path: Path) -> None:
    texts = ["a goal", "shares fell on monday, and a long season of games followed"]
    answers = []
    for token in ("<pad>", "[PAD]"):
        save_tiny(tmp_path / token / "backbone", "llama_gqa", vocab_size=len(tiny_tokenizer()))
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"pad_token": token})
        tokenizer.save_pretrained(tmp_path / token / "backbone")
        config = tiny_run(tmp_path / token)
        answers.append(LoadedAdapter.load(config.run_dir.adapter, "cpu").predict(texts))
    assert tokenizer.pad_token_id == len(tiny_tokenizer())
    for plain, beyond in zip(*answers, strict=True):
        assert beyond.scores == pytest.approx(plain.scores, abs=1e-6)


TRAINED = ["Roads, rails", "Health", 'The "Net"', "a,b,c"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["library,parking"], ["library", "parking"]),
        ([" library , parking ", "pool"], ["library", "parking", "pool"]),
        (["Roads, rails"], ["Roads, rails"]),
        ([" Roads, rails ", "Health,Sport"], ["Roads, rails", "Health", "Sport"]),
        (['"Roads, rails",Sport'], ["Roads, rails", "Sport"]),
        (['Sport, "Roads, rails"'], ["Sport", "Roads, rails"]),
        (['"Sea, air","a ""b"""'], ["Sea, air", 'a "b"']),
        (['The "Net"'], ['The "Net"']),
        (['5" pipes,The "Net"'], ['5" pipes', 'The "Net"']),
        (["a,b,c", "Roads"], ["a,b,c", "Roads"]),
    ],
)
def test_labels_are_split_as_a_csv_record_but_those_of_training_never(values: list[str], labels: list[str]) -> None:
    assert split_labels(values, TRAINED) == labels


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Roads, rails,Sport", "is the label 'Roads, rails' meant, or its parts"),
        ("Sport,a,b,c", "is the label 'a,b,c' meant, or its parts"),
        ('"Sea, air', "unexpected end of data; a name with a comma"),
        ("one\ntwo", "new-line character"),
    ],
)
def test_labels_that_can_be_read_in_two_ways_are_refused(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_labels([value], TRAINED)


def test_a_label_with_a_comma_is_scored_as_one(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a goal\n")
    predict(config.run.dir, str(tmp_path / "texts.txt"), str(tmp_path / "out"), labels=['"a,b",art'], device="cpu")
    assert list(lines_of(tmp_path / "out")[0]["scores"]) == ["a,b", "art"]


def test_each_part_is_written_before_the_next_is_read(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Constant memory: an input without end gives output."""
    monkeypatch.setattr(stage, "CHUNK_TEXTS", 2)
    written: list[int] = []

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:
            written.append(capsys.readouterr().out.count("\n"))
            if len(written) > 6:
                raise KeyboardInterrupt
            buffer[:7] = b"a goal\n"
            return 7

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless(), buffer_size=8)))
    with pytest.raises(KeyboardInterrupt):
        predict(config.run_dir.adapter, "-", device="cpu")
    assert sum(written) >= 4


def test_a_bad_line_leaves_no_output_and_an_old_output_as_it_was(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a goal"}\n{"text": ""}\n')
    output = tmp_path / "out" / "predictions.jsonl"
    with pytest.raises(UserError, match=r"row 2 \(line 2\): 'text' is empty"):
        predict(config.run.dir, str(tmp_path / "texts.jsonl"), str(output), device="cpu")
    assert list(output.parent.iterdir()) == []
    output.write_text("old")
    with pytest.raises(UserError, match="line 2"):
        predict(config.run.dir, str(tmp_path / "texts.jsonl"), str(output), device="cpu")
    assert output.read_text() == "old" and len(list(output.parent.iterdir())) == 1


ROWS = 'id,text,n\n1,a goal,nan\n2,,x\n\n3,"over\ntwo lines",y\n4,short\n5,profit rose,z\n'


def test_faulty_rows_are_skipped_in_their_places_and_columns_are_kept(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "texts.csv").write_text(ROWS)
    texts = Input(str(tmp_path / "texts.csv"), keep=["n", "id"], on_error="skip")
    assert predict(config.run.dir, texts, str(tmp_path / "out.jsonl"), device="cpu") == 3
    lines = lines_of(tmp_path / "out.jsonl")
    assert [line.get("text") for line in lines] == ["a goal", None, "over\ntwo lines", None, "profit rose"]
    assert list(lines[0])[:3] == ["n", "id", "text"] and [line.get("id") for line in lines] == [
        "1",
        "2",
        "3",
        None,
        "5",
    ]
    assert lines[1] == {"n": "x", "id": "2", "line": 3, "error": "'text' is empty"}
    assert lines[3] == {"line": 7, "error": "2 fields where the header has 3"}
    assert "2 rows are faulty" in caplog.text


def test_values_that_json_lacks_are_written_all_the_same(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '\n{"text": "a goal", "x": {"y": [NaN, 1]}, "z": "half \\ud800"}\n{"text": "b"}\n'
    )
    texts = Input(str(tmp_path / "a.jsonl"), keep=["x", "z"])
    assert predict(config.run.dir, texts, str(tmp_path / "out.jsonl"), device="cpu") == 2
    first, second = lines_of(tmp_path / "out.jsonl")
    assert first["x"] == {"y": [None, 1]} and first["z"] == "half \ud800" and second["x"] is None


def test_what_was_answered_before_a_faulty_row_stays_in_a_stream(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.csv").write_text(ROWS)
    with pytest.raises(UserError, match=r"texts.csv, row 2 \(line 3\): 'text' is empty"):
        predict(config.run.dir, str(tmp_path / "texts.csv"), device="cpu")
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a goal"]


def test_a_text_that_becomes_no_token_costs_no_other_its_answer(tmp_path: Path) -> None:
    save_tiny(tmp_path / "backbone", "llama_gqa")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save_pretrained(tmp_path / "backbone")
    config = tiny_run(tmp_path)
    (tmp_path / "texts.txt").write_text("a goal\n\u200b\nprofit rose\n")
    predict(config.run.dir, Input(str(tmp_path / "texts.txt"), on_error="skip"), str(tmp_path / "out"), device="cpu")
    first, empty, last = lines_of(tmp_path / "out")
    assert (first["text"], last["text"]) == ("a goal", "profit rose")
    assert empty["line"] == 2 and empty["error"].startswith("becomes no token at all")
    with pytest.raises(UserError, match=r"texts.txt, row 2 \(line 2\): becomes no token"):
        predict(config.run.dir, str(tmp_path / "texts.txt"), device="cpu")


def test_a_slow_pipe_gets_its_answers_at_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes waits for the answer to what was written, before writing more."""
    reading, writing = os.pipe()
    answers, answering = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    seen: list[str] = []

    def converse() -> None:
        with os.fdopen(writing, "w") as ask, os.fdopen(answers) as hear:
            for texts in (["a goal"], ["profit rose", "they won the cup", "stars"], ["the probe"]):
                ask.write("".join(f"{text}\n" for text in texts))
                ask.flush()
                seen.extend(json.loads(hear.readline())["text"] for _ in texts)

    other = threading.Thread(target=converse, daemon=True)
    other.start()
    assert predict(config.run.dir, "-", f"/dev/fd/{answering}", device="cpu") == 5
    other.join(10)
    os.close(answering)
    assert seen == ["a goal", "profit rose", "they won the cup", "stars", "the probe"]


@pytest.mark.parametrize(("name", "content"), [("t.txt", "a goal\n\n \nwon\n"), ("t.csv", "text\na goal\n\n\nwon\n")])
def test_blank_lines_that_get_no_answer_are_counted(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    assert predict(config.run.dir, str(tmp_path / name), str(tmp_path / "out"), device="cpu") == 2
    assert "2 blank lines of the input are not in the output" in caplog.text


def test_a_missing_input_is_said_before_the_backbone_is_loaded(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedAdapter, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="cannot be read"):
        predict(config.run.dir, str(tmp_path / "none.txt"), device="cpu")
    with pytest.raises(UserError, match="unknown ending"):
        predict(config.run.dir, str(tmp_path / "none.doc"), device="cpu")


def test_nothing_that_is_read_is_written(config: RunConfig, tmp_path: Path) -> None:
    source, link = tmp_path / "texts.csv", tmp_path / "link.csv"
    source.write_text("text\na goal\n")
    link.symlink_to(source)
    adapter, backbone = config.run_dir.adapter, Path(config.backbone.name_or_path)
    read = [source, link, adapter / "labels.json", adapter / "new.jsonl", backbone / "config.json"]
    before = [path.read_bytes() if path.exists() else None for path in read]
    for output in read:
        with pytest.raises(UserError, match="would overwrite what is read"):
            predict(config.run.dir, str(source), str(output), device="cpu")
    assert [path.read_bytes() if path.exists() else None for path in read] == before
    assert predict(config.run.dir, str(source), str(config.run_dir.path / "out.jsonl"), device="cpu") == 1
    (config.run_dir.path / "out.jsonl").unlink()


def test_a_link_stays_a_link_and_a_pipe_gets_the_lines(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a goal\n")
    (tmp_path / "link").symlink_to("far.jsonl")
    predict(config.run.dir, str(tmp_path / "texts.txt"), str(tmp_path / "link"), device="cpu")
    assert (tmp_path / "link").is_symlink() and len(lines_of(tmp_path / "far.jsonl")) == 1
    reading, writing = os.pipe()
    predict(config.run.dir, str(tmp_path / "texts.txt"), f"/dev/fd/{writing}", device="cpu")
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == (tmp_path / "far.jsonl").read_text()
