"""preprocess in processes of its own: killed at any instant, and within bounded memory.

covers stages/preprocess
"""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

from datasets import load_from_disk
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from pipeline.config import load_config
from pipeline.stages.preprocess import preprocess
from tests.support.fork_server import run_forked
from tests.support.labelled import ROWS, config_in, write
from tests.support.tiny import save_tiny


def killed(arguments: list[str]) -> None:
    config = load_config(arguments[0])
    run = config.run_dir
    for turn in range(8):
        child = os.fork()
        if not child:
            limit = 32
            while True:  # every turn finds the last one stale
                limit = 96 - limit
                preprocess(config.model_copy(update={"data": config.data.model_copy(update={"max_length": limit})}))
        while not run.manifest_file.exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child failed"
            time.sleep(0.01)
        time.sleep(0.05 + 0.037 * turn)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        data = run.data if run.data.exists() else run.path / ".ltune-data.old"
        manifest = json.loads((data / "manifest.json").read_text())
        assert manifest["fingerprint"]["data.max_length"] in ("32", "64")
        assert manifest["splits"]["train"]["rows"] == len(load_from_disk(str(data / "train"))) == 200
    preprocess(config)
    assert sorted(path.name for path in run.path.iterdir()) == ["data", "ltune.json"]


def test_killed_at_any_instant_the_data_is_whole(tmp_path):
    write(tmp_path / "train.tsv", ROWS * 50)
    config = config_in(tmp_path, save_tiny(tmp_path / "backbone", "bert"))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    log, arguments = tmp_path / "log", [str(tmp_path / "config.yaml")]
    assert run_forked("tests.stages.test_preprocess_processes:killed", arguments, log, 300) == 0, log.read_text()


def measured(arguments: list[str]) -> None:
    """Prints by how many bytes the process grows."""
    config = load_config(arguments[0])
    small = config.data.model_copy(update={"train": arguments[1]})
    preprocess(config.model_copy(update={"data": small}))  # imports and first use are not what is measured
    peak = before = anonymous_bytes()

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    preprocess(config)
    print(peak - before)


def anonymous_bytes() -> int:
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def test_a_file_larger_than_the_memory_allowed_is_streamed(tmp_path):
    words = ["x" * 1000, "y" * 990]  # few tokens a byte keep the test quick
    tokenizer_folder = word_tokenizer(tmp_path / "words", words)
    large, small = tmp_path / "train.tsv", tmp_path / "small.tsv"
    for file, count in [(large, 6_000), (small, 600)]:
        write(file, [(f"{n} {words[n % 2]} {words[0]}", f"label {n % 2}") for n in range(count)])
    (tmp_path / "config.yaml").write_text(config_in(tmp_path, tokenizer_folder).to_yaml())
    log, arguments = tmp_path / "log", [str(tmp_path / "config.yaml"), str(small)]
    assert run_forked("tests.stages.test_preprocess_processes:measured", arguments, log, 300) == 0, log.read_text()
    file_bytes, grown_bytes = large.stat().st_size, int(log.read_text().splitlines()[-1])
    # A third of the file: what the allocator keeps differs by some 0.3 MB between runs.
    assert file_bytes > 11e6 and grown_bytes < 4e6, (file_bytes, grown_bytes)


def word_tokenizer(folder, words):
    """A backbone folder (no weights) whose tokenizer makes one token of a word, however long."""
    tokenizer = Tokenizer(
        models.WordLevel({"<unk>": 0} | {word: n for n, word in enumerate(words, 1)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    AutoConfig.for_model("bert", max_position_embeddings=128).save_pretrained(folder)
    return folder
