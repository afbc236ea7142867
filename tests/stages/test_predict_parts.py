"""Parts of answers by one process, by ranks with whole and sharded backbones, and over kills: always the same bytes.

PREDICT_KILLS=200 python -m pytest tests/stages/test_predict_parts.py kills more often.

covers stages/predict_parts, engine/own_texts, engine/answers
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.adapter.directory import load_adapter, save_adapter
from pipeline.core.errors import UserError
from pipeline.core.parts import Parts
from pipeline.data.unlabelled import Input
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.export import export
from pipeline.stages.predict import predict
from pipeline.stages.predict_parts import PartsOutput, Scoring, predict_parts
from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_run

KILLS = int(os.environ.get("PREDICT_KILLS", "5"))
ROWS, PART_ROWS = 41, 4
WORDS = ["the", "match", "goal", "profit", "bank", "moon", "cell", "stars", "light", "season", "cup", "rate"]
ZERO3 = ["--deepspeed", "ds_configs/zero3_cpu.json"]


def write_input(folder: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(ROWS)]
    ids = pa.array([None if row == 3 else 7 * row for row in range(ROWS)], pa.int32())
    pq.write_table(pa.table({"id": ids, "text": texts, "unused": [0.5] * ROWS}), folder / "in.parquet")


def command(folder: Path, parts: str, *more: str, adapter: str = "run") -> list[str]:
    source = ["predict", "--adapter", str(folder / adapter), "--input", str(folder / "in.parquet"), "--keep", "id"]
    return [*source, "--parts", str(folder / parts), "--part-rows", str(PART_ROWS), *more]


def script(folder: Path) -> dict[str, Any]:
    """Statuses of the undisturbed; and what the kills came to."""
    run = {
        "one": launch(command(folder, "one"), folder / "one.log"),
        "sharded": launch(command(folder, "sharded", *ZERO3), folder / "sharded.log", world=2),
        "exported": launch(
            command(folder, "exported-sharded", *ZERO3, adapter="exported"), folder / "exported.log", world=2
        ),
        "whole": launch(command(folder, "whole"), folder / "whole.log", world=2),
        "share": launch(command(folder, "shares", "--share", "1/2"), folder / "share.log"),
    }
    shares = sorted(file.name for file in (folder / "shares").iterdir())
    run["other share"] = launch(command(folder, "shares", "--share", "0/2"), folder / "share.log")
    return {"statuses": run, "shares": shares, "kills": killed(folder)}


def killed(folder: Path) -> dict[str, Any]:
    """Struck at random, gone on with by other numbers of ranks, until it is left alone."""
    draw = random.Random(os.environ.get("PREDICT_SEED", "1"))
    seen: dict[str, tuple[int, int]] = {}
    statuses, rewritten = [], []
    for _ in range(KILLS):
        phase = draw.choice(["read part", "write part", "record", "evaluation"])
        fault = f"strike:SIGKILL,{phase},{draw.randint(1, 4)},{draw.randint(0, 20)}"
        world, more = draw.choice([(1, []), (2, []), (3, []), (2, ZERO3)])
        log = folder / "killed.log"
        statuses.append(launch(command(folder, "killed", *more), log, world=world, fault=fault, faulty=[world - 1]))
        rewritten += [name for name, state in seen.items() if written(folder / "killed").get(name) != state]
        seen = written(folder / "killed")
    last = launch(command(folder, "killed"), folder / "killed.log", world=2)
    rewritten += [name for name, state in seen.items() if written(folder / "killed").get(name) != state]
    return {"statuses": statuses, "last": last, "rewritten": rewritten}


def written(parts: Path) -> dict[str, tuple[int, int]]:
    """The files of the parts that are recorded as finished, and when each was written."""
    names = [json.loads(file.read_text())["file"] for file in (parts / "records").glob("part-*.json")]
    return {name: ((stat := (parts / name).stat()).st_ino, stat.st_mtime_ns) for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    config = tiny_run(folder)  # in another process than the launches, whose ranks begin without a process group
    export(config.run_dir.adapter, folder / "exported")
    write_input(folder)
    return run_script("tests.stages.test_predict_parts:script", folder, 600 + 30 * KILLS)


def content(folder: Path) -> dict[str, bytes]:
    """All but who wrote it when."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_one_process_writes_what_the_classifier_says(folder: Path, found: dict[str, Any]) -> None:
    assert found["statuses"]["one"] == [0], (folder / "one.log").read_text()
    files = sorted((folder / "one").glob("part-*.parquet"))
    assert len(files) == -(-ROWS // PART_ROWS)
    source = pq.read_table(folder / "in.parquet")
    table = pa.concat_tables(pq.read_table(file) for file in files)
    assert table["id"].type == pa.int32() and table["id"].equals(source["id"]) and "unused" not in table.column_names
    assert table["row"].to_pylist() == list(range(1, ROWS + 1)) and table["text"].equals(source["text"])
    classifier, texts = LoadedAdapter.load(folder / "run", "cpu"), source["text"].to_pylist()
    parts = [texts[first : first + PART_ROWS] for first in range(0, ROWS, PART_ROWS)]
    expected = [prediction for part in parts for prediction in classifier.predict(part)]
    assert table["label"].to_pylist() == [each.label for each in expected]
    for label in classifier.labels:  # bit for bit
        assert table[f"score/{label}"].to_pylist() == [each.scores[label] for each in expected]
        assert table[f"probability/{label}"].to_pylist() == [each.probabilities[label] for each in expected]
    manifest = json.loads((folder / "one" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["faulty"]) == (ROWS, 0) and len(manifest["parts"]) == len(files)


@pytest.mark.parametrize("name", ["sharded", "whole"])
def test_two_ranks_write_the_same_bytes(folder: Path, found: dict[str, Any], name: str) -> None:
    assert found["statuses"][name] == [0, 0], (folder / f"{name}.log").read_text()
    assert content(folder / name) == content(folder / "one")


def test_two_ranks_score_with_an_exported_adapter_as_with_the_trained_one(folder: Path, found: dict[str, Any]) -> None:
    """Which no run can name as its method."""
    assert found["statuses"]["exported"] == [0, 0], (folder / "exported.log").read_text()
    for part in (folder / "one").glob("part-*"):
        assert (folder / "exported-sharded" / part.name).read_bytes() == part.read_bytes()


def test_shares_of_an_array_make_it_whole(folder: Path, found: dict[str, Any]) -> None:
    assert found["statuses"]["share"] == found["statuses"]["other share"] == [0], (folder / "share.log").read_text()
    assert "manifest.json" not in found["shares"] and "part-00001.parquet" in found["shares"]
    assert content(folder / "shares") == content(folder / "one")


def test_killed_at_random_nothing_is_lost_or_written_twice(folder: Path, found: dict[str, Any]) -> None:
    kills, log = found["kills"], (folder / "killed.log").read_text()
    assert any(status[-1] < 0 for status in kills["statuses"]), "none was killed"
    assert kills["last"] == [0, 0], log
    assert kills["rewritten"] == []
    assert content(folder / "killed") == content(folder / "one")


@pytest.fixture(scope="module")
def run_dir(folder: Path, found: dict[str, Any]) -> Path:
    return folder / "run"


CSV = "id,text\n1,a goal\n2,\n3,profit rose\n4\n5,stars are born\n"


def test_lines_are_those_of_the_stream(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(CSV)
    source = Input(str(tmp_path / "in.csv"), keep=["id"], on_error="skip")
    predict(run_dir, source, str(tmp_path / "stream.jsonl"), device="cpu")
    assert predict_parts(Scoring(run_dir), source, PartsOutput(tmp_path / "out", "jsonl")) == 3
    files = (tmp_path / "out" / "part-00000.jsonl", tmp_path / "stream.jsonl")
    ours, theirs = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert [list(line) for line in ours] == [list(line) for line in theirs]
    for line, other in zip(ours, theirs, strict=True):  # one in the last of six digits: other passes, other rounding
        for key in ("scores", "probabilities"):
            assert line.pop(key, {}) == pytest.approx(other.pop(key, {}), rel=1.1e-5)
        assert line == other
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["faulty"] == 2


def test_blank_lines_that_get_no_row_are_counted(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.txt").write_text("a goal\n\n \nprofit rose\n\n")
    output = PartsOutput(tmp_path / "parts", rows=1)
    assert predict_parts(Scoring(run_dir, device="cpu"), Input(str(tmp_path / "in.txt")), output) == 2
    assert caplog.text.count("2 blank lines of the input are not in the output") == 1


def test_faulty_rows_keep_their_places_in_parquet(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(CSV)
    source = Input(str(tmp_path / "in.csv"), keep=["id"], on_error="skip")
    predict_parts(Scoring(run_dir, labels=["art,war"]), source, PartsOutput(tmp_path / "out", rows=2))
    files = sorted((tmp_path / "out").glob("*.parquet"))
    rows = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    assert [row["id"] for row in rows] == ["1", "2", "3", None, "5"]
    assert [row["error"] for row in rows] == [None, "'text' is empty", None, "1 fields where the header has 2", None]
    assert [row["label"] in ("art", "war") for row in rows] == [True, False, True, False, True]
    assert rows[1]["score/art"] is None and rows[1]["text"] is None
    with pytest.raises(UserError, match=r"in.csv, row 2 \(line 3\): 'text' is empty"):
        predict_parts(Scoring(run_dir), Input(source.place), PartsOutput(tmp_path / "other"))


def test_a_folder_of_parquet_files_is_read_as_a_data_set(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    for number, text in enumerate(["a goal", "profit rose"]):
        pq.write_table(
            pa.table({"text": [text], "when": pa.array([number], pa.timestamp("us"))}),
            tmp_path / "lake" / f"{number}.parquet",
        )
    source = Input(f"hub:{tmp_path / 'lake'}:train", keep=["when"])
    assert predict_parts(Scoring(run_dir), source, PartsOutput(tmp_path / "out")) == 2
    table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table["text"].to_pylist() == ["a goal", "profit rose"] and table["when"].type == pa.timestamp("us")


def test_what_cannot_be_gone_on_with_is_refused(run_dir: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "in.txt", PartsOutput(tmp_path / "out", rows=2)
    file.write_text("a goal\nprofit rose\nstars\nthe probe\n")
    assert predict_parts(Scoring(run_dir), Input(str(file)), out) == 4
    assert predict_parts(Scoring(run_dir), Input(str(file)), out) == 0  # all is there
    for text, message in (
        ("a goal\nprofit\nstars\nthe probe\n", "made from other rows"),
        ("a goal\nprofit rose\n", "more parts"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            predict_parts(Scoring(run_dir), Input(str(file)), out)
    with pytest.raises(UserError, match="another job: --part-format was 'parquet', now 'jsonl'"):
        predict_parts(Scoring(run_dir), Input(str(file)), PartsOutput(tmp_path / "out", "jsonl", 2))
    with pytest.raises(UserError, match="choose a new or an empty folder"):
        predict_parts(Scoring(run_dir), Input(str(file)), PartsOutput(tmp_path))
    with pytest.raises(UserError, match="reads its input again"):
        predict_parts(Scoring(run_dir), Input("-"), out)
    with pytest.raises(UserError, match="rename the input's column"):
        predict_parts(Scoring(run_dir), Input(str(file), "csv", ["score/a"]), out)


def test_a_job_scores_with_the_adapter_that_it_began_with(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with one that a training has put into its place while the input was read."""
    folder, file = shutil.copytree(run_dir / "adapter", tmp_path / "adapter"), tmp_path / "in.txt"
    file.write_text("a goal\n")
    [expected] = LoadedAdapter.load(folder, "cpu").predict("a goal")
    claimed, adapter = Parts.claimed, load_adapter(folder)

    def claimed_late(*given: Any) -> Parts:
        state = {name: tensor * 2 for name, tensor in adapter.method_state.items()}
        save_adapter(folder, state, adapter.config, adapter.labels)
        return claimed(*given)

    monkeypatch.setattr(Parts, "claimed", claimed_late)
    predict_parts(Scoring(folder, device="cpu"), Input(str(file)), PartsOutput(tmp_path / "out"))
    [row] = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    assert {name: row[f"score/{name}"] for name in expected.scores} == expected.scores


def test_a_part_that_was_damaged_is_made_again(run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, out = tmp_path / "in.txt", PartsOutput(tmp_path / "out", rows=2)
    file.write_text("a goal\nprofit rose\nstars\nthe probe\n")
    predict_parts(Scoring(run_dir), Input(str(file)), out)
    before = content(tmp_path / "out")
    part = tmp_path / "out" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-1])
    assert predict_parts(Scoring(run_dir), Input(str(file)), out) == 2
    assert content(tmp_path / "out") == before and "is not what was written" in caplog.text
