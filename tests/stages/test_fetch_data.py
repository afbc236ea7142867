"""fetch-data against a stand-in on this machine for the host of the published files, which is never asked."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.core.errors import UserError
from pipeline.data.public_sets import PUBLIC_SETS
from pipeline.stages.fetch_data import PINS, fetch_data
from tests.support.tiny import save_tiny

ROWS = {
    "masakhanews": "category\theadline\ttext\turl\n"
    + "".join(f"{label}\tHead X {label} {n}\tText\thttp://x\n" for n in range(6) for label in ("sport", "health")),
    "rte": "index\tsentence1\tsentence2\tlabel\n"
    + "".join(f"{n}\tX premise {n}\thyp {n}\t{'entailment' if n % 2 else 'not_entailment'}\n" for n in range(2000)),
}


class Host:
    """What it has (path -> content), and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.address = ""

    def holds(self, name: str) -> None:
        for source in PUBLIC_SETS[name].files:
            self.files[f"/{source.path}"] = ROWS[source.form].replace("X", source.split).encode()


@pytest.fixture
def host() -> Iterator[Host]:
    known = Host()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.asked.append(self.path)
            content = known.files.get(self.path)
            self.send_response(200 if content is not None else 404)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    known.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield known
    server.shutdown()
    server.server_close()


def test_a_set_is_fetched_named_by_one_key_and_read(
    host: Host,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LTUNE_DATA", str(tmp_path / "sets"))
    host.holds("masakhanews_hau")
    assert main(["fetch-data", "masakhanews_hau", "--mirror", host.address]) == 0
    said = capsys.readouterr().out
    assert "24 training and validation rows, expected 667; 12 test rows, expected 637" in caplog.text
    assert "licence: " in said and "cite: Adelani" in said and "train 12, validation 12, test 12 rows" in said
    assert host.asked == [f"/{source.path}" for source in PUBLIC_SETS["masakhanews_hau"].files]
    first = (tmp_path / "sets/masakhanews_hau/test.tsv").read_text().splitlines()[:2]
    assert first == ["text\tlabel", "Head test sport 0 Text\tsport"]
    save_tiny(tmp_path / "backbone", "llama_gqa")
    (tmp_path / "c.yaml").write_text(
        f"run: {{dir: {tmp_path}/run}}\nbackbone: {{name_or_path: {tmp_path}/backbone, dtype: float32}}\n"
        "data: {public: masakhanews_hau, max_length: 32}\nmethod: {name: majority}\n"
    )
    assert main(["preprocess", "--config", f"{tmp_path}/c.yaml"]) == 0
    assert f"{tmp_path}/sets/masakhanews_hau/train.tsv" in (tmp_path / "run/config.yaml").read_text()


def test_pairs_are_named_too(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTUNE_DATA", str(tmp_path))
    host.holds("rte")
    fetch_data("rte", mirror=host.address)
    assert (tmp_path / "rte/validation.tsv").read_text().startswith("text\ttext_pair\tlabel\ntrain premise")
    (tmp_path / "c.yaml").write_text(
        "run: {dir: r}\nbackbone: {name_or_path: b}\ndata: {public: rte, validation: null}\nmethod: {name: probe}\n"
    )
    data = load_config(tmp_path / "c.yaml").data
    assert (data.text_pair, data.validation, data.test) == ("text_pair", None, str(tmp_path / "rte/test.tsv"))
    with pytest.raises(UserError, match=r"data\.public names the files of all splits, and data\.test is given too"):
        load_config(tmp_path / "c.yaml", ["data.test=x.tsv"])
    with pytest.raises(UserError, match="there is no public set 'rt'"):
        load_config(tmp_path / "c.yaml", ["data.public=rt"])


def test_a_second_fetch_asks_nobody_and_changed_files_are_refused(host: Host, tmp_path: Path) -> None:
    host.holds("masakhanews_pcm")
    place = fetch_data("masakhanews_pcm", str(tmp_path), mirror=host.address)
    host.asked.clear()
    before = (place / "train.tsv").read_bytes()
    fetch_data("masakhanews_pcm", str(tmp_path), mirror=host.address)
    assert host.asked == [] and (place / "train.tsv").read_bytes() == before
    raw = next((place / "raw").rglob("*.tsv"))
    raw.write_bytes(raw.read_bytes() + b"sport\tmore\tmore\thttp://x\n")
    with pytest.raises(UserError, match=f"is not the file that was fetched first .{PINS}.: remove"):
        fetch_data("masakhanews_pcm", str(tmp_path), mirror=host.address)
    assert (place / "train.tsv").read_bytes() == before


@pytest.mark.parametrize("is_there", [True, False])
def test_offline_it_says_what_to_download_and_takes_it_from_there(host: Host, tmp_path: Path, is_there: bool) -> None:
    """A host that lacks the files, and none at all."""
    address = host.address if is_there else "http://127.0.0.1:9"
    with pytest.raises(UserError) as error:
        fetch_data("masakhanews_swa", str(tmp_path), mirror=address)
    line = str(error.value)
    assert ("404" in line) == is_there and not list(tmp_path.rglob("*.tsv"))
    repository, paths, folder = re.findall(r"(https://raw[^ ]*/) (.*); put each below '(.*)'", line)[0]
    assert re.fullmatch(r"https://raw\.githubusercontent\.com/masakhane-io/masakhane-news/[0-9a-f]{40}/", repository)
    assert len(paths.split(", ")) == 3
    for path in paths.split(", "):
        file = Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        split = {"train": "train", "dev": "validation", "test": "test"}[file.stem]
        file.write_text(ROWS["masakhanews"].replace("X", split))
    place = fetch_data("masakhanews_swa", str(tmp_path), mirror=address)
    assert len((place / "validation.tsv").read_text().splitlines()) == 13


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_the_whole_of_it_is_one_line_that_is_not_cut(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fetch-data", name, "--output", str(tmp_path), "--mirror", "http://127.0.0.1:9"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(source.place in line and source.repository in line for source in PUBLIC_SETS[name].files)


def test_half_a_file_or_another_one_is_not_taken(host: Host, tmp_path: Path) -> None:
    host.holds("masakhanews_eng")
    host.files |= dict.fromkeys(host.files, b"<html>Too many requests</html>")
    with pytest.raises(UserError, match="is not the published file"):
        fetch_data("masakhanews_eng", str(tmp_path), mirror=host.address)
    assert not (tmp_path / "masakhanews_eng/train.tsv").exists()


def test_a_set_that_was_not_fetched_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fetch-data", "sst", "--output", str(tmp_path)]) == 2
    assert "there is no public set 'sst' (nearest: 'sst2')" in capsys.readouterr().err
    save_tiny(tmp_path / "backbone", "llama_gqa")
    (tmp_path / "c.yaml").write_text(
        f"run: {{dir: {tmp_path}/run}}\nbackbone: {{name_or_path: {tmp_path}/backbone, dtype: float32}}\n"
        "data: {public: sst2, max_length: 32}\nmethod: {name: majority}\n"
    )
    for command in ("run", "preprocess"):
        assert main([command, "--config", f"{tmp_path}/c.yaml"]) == 2
        assert "sst2/train.tsv" in (line := capsys.readouterr().err.splitlines()[-1])
        assert "run `ltune fetch-data sst2` first" in line
