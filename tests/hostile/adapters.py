"""Adapter directories from elsewhere, and what is given to `predict`."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.case import Bench, Case, change_json, deep
from tests.support.devices import device

CONFIG = "adapter_config.json"


def spoilt(name: str, spoil: Callable[[Path], object], says: str, *arguments: str) -> Case:
    """A copy of the adapter in which something is changed, and its checksums with it."""

    def make(bench: Bench) -> list[str]:
        adapter = bench.copy("run") / "adapter"
        spoil(adapter)
        (adapter / "SHA256SUMS").unlink(missing_ok=True)
        return bench.predict(*arguments, adapter=adapter)

    return Case(name, make, says)


def written(name: str, file: str, content: str | bytes, says: str, *arguments: str) -> Case:
    data = content.encode() if isinstance(content, str) else content
    return spoilt(f"{file}: {name}", lambda folder: (folder / file).write_bytes(data), says, *arguments)


def special(file: str, target: str | None, says: str) -> Case:
    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file) if target is None else (folder / file).symlink_to(target)

    return spoilt(f"adapter: {target or 'a pipe'} as {file}", spoil, says)


def method(name: str, says: str, /, **keys: Any) -> Case:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        change_json(folder / CONFIG, method=values["method"] | keys)

    return spoilt(f"{CONFIG}: {name}", spoil, says)


def keys(name: str, says: str, /, **values: Any) -> Case:
    return spoilt(f"{CONFIG}: {name}", lambda folder: change_json(folder / CONFIG, **values), says)


def sections(name: str, says: str, section: str, /, **values: Any) -> Case:
    def spoil(folder: Path) -> None:
        found = json.loads((folder / CONFIG).read_text())[section]
        change_json(folder / CONFIG, **{section: found | values})

    return spoilt(f"{CONFIG}: {name}", spoil, says)


def text(name: str, content: str | bytes | Callable[[], bytes], says: str, *arguments: str, status: int = 2) -> Case:
    def make(bench: Bench) -> list[str]:
        return bench.predict(*arguments, text=content() if callable(content) else content)

    return Case(f"predict: {name}", make, says, status)


BROKEN = "labels.json' is damaged"
ADAPTERS = [
    written("nested 100,000 deep", CONFIG, deep("[", "]"), f"{CONFIG}' cannot be read"),
    written("5,000 digits", CONFIG, f'{{"version": {"1" * 5000}}}', f"{CONFIG}' cannot be read"),
    written("a list", CONFIG, "[]", f"{CONFIG}' is damaged"),
    written("empty", CONFIG, "", f"{CONFIG}' cannot be read"),
    written("not UTF-8", CONFIG, b"\xff\xff", f"{CONFIG}' cannot be read"),
    keys("version 10^12", "format version 1000000000000", version=10**12),
    keys("a version in words", "damaged: version", version="two"),
    keys("a key too many", "damaged: surprise", surprise=1),
    keys("no method", "damaged: method", method=None),
    method("rank 10^12", "damaged: method.*rank", rank=10**12),
    method("the largest rank", "3 tensors do not fit lt_prefix", rank=2**16, pooling="tokens"),
    method("an unknown method", "damaged: method", name="nobody"),
    sections("code of its own", "trust_remote_code", "backbone", trust_remote_code=True),
    sections("texts of 10^12 tokens", "damaged: data.max_length", "data", max_length=10**12),
    sections("a template with a width", "damaged: labels.template", "labels", template="{label:>9999999999}"),
    sections(
        "a backbone that is a device", "'/dev/zero': no such folder or hub model", "backbone", name_or_path="/dev/zero"
    ),
    special(CONFIG, None, "not an adapter directory"),
    special("adapter.safetensors", None, "a pipe, not a file .adapter.safetensors"),
    special("adapter.safetensors", "/dev/zero", "a device, not a file"),
    special("labels.json", None, "a pipe, not a file .labels.json"),
    written("a header of 2^63 bytes", "adapter.safetensors", struct.pack("<Q", 2**63) + b"{}", "missing or damaged"),
    written("empty", "adapter.safetensors", b"", "missing or damaged"),
    written("empty", "label_states.safetensors", b"", "label_states"),
    written("nested 100,000 deep", "labels.json", deep("[", "]"), "labels.json"),
    written("a list", "labels.json", "[]", BROKEN),
    written("names as numbers", "labels.json", '{"names": [1, 2, 3], "hypotheses": [1], "fingerprint": {}}', BROKEN),
    written("infinity", "calibration.json", '{"temperature": Infinity, "texts": 1}', "calibration", "--calibrated"),
    written("nothing", "calibration.json", '{"temperature": 0, "texts": 1}', "calibration", "--calibrated"),
    written("nested 100,000 deep", "calibration.json", deep("[", "]"), "calibration", "--calibrated"),
    Case("adapter: no folder", lambda bench: bench.predict(adapter=Path("/nowhere")), "not an adapter directory"),
    Case("adapter: a file", lambda bench: bench.predict(adapter=Path("/etc/passwd")), "is not an adapter directory"),
    Case("adapter: /dev/zero", lambda bench: bench.predict(adapter=Path("/dev/zero")), "is not an adapter directory"),
]

DIFFERENT = "the labels must be at least two different names"
PREDICT = [
    text("a line without an end", lambda: b"x" * (20 << 20), "line 1 is longer than 16 MiB"),
    text("nothing", b"", "texts.txt holds no text"),
    text("null bytes", lambda: b"\0" * (20 << 20), "longer than 16 MiB"),
    text("not UTF-8", b"good\n\xff\xff\n", "byte 0xff on line 2 is not UTF-8"),
    text("a text of a megabyte", b"word " * 200_000 + b"\n", '"truncated": true', status=0),
    text("escapes", "\x1b[31mred\n", r"\\u001b\[31mred", status=0),
    text("one label", "a\n", DIFFERENT, "--labels", "sport"),
    text("a label twice", "a\n", DIFFERENT, "--labels", "sport,sport"),
    text("labels of nothing", "a\n", DIFFERENT, "--labels", ",,,"),
    text("labels of 100,000 characters", "a\n", "has 100012 tokens", "--labels", "x" * 100_000 + ",b"),
    text("an unknown device", "a\n", "--device 'toaster' is not known", "--device", "toaster"),
    text("an output that is a folder", "a\n", "is a folder", "--output", "/tmp"),
    text("an output in nothing", "a\n", "cannot write", "--output", "/proc/nothing/x.jsonl"),
    text("an output of 5,000 characters", "a\n", "cannot write .*File name too long", "--output", "/tmp/" + "x" * 5000),
    Case(
        "predict: a full disk",
        lambda bench: bench.predict("--output", str(device(bench.folder, "full"))),
        "cannot write .*No space left",
    ),
    text("jsonl nested 100,000 deep", deep("[", "]"), "nested too deeply", "--format", "jsonl"),
    text("jsonl of 5,000 digits", f'{{"text": {"1" * 5000}}}\n', "row 1 .line 1.: not JSON", "--format", "jsonl"),
    text("csv without a column", "a,b\n1,2\n", "no column", "--format", "csv"),
    text(
        "a csv of 100,000 columns",
        ",".join(map(str, range(100_000))) + "\n",
        "has 100,000 columns, at most 10,000",
        "--format",
        "csv",
    ),
    Case("predict: an input that is /dev/zero", lambda b: _input(b, "/dev/zero"), "longer than 16 MiB"),
    Case(
        "predict: an input that is a folder", lambda b: _input(b, "/tmp"), "input '/tmp' cannot be read .it is a folder"
    ),
    Case("predict: no input", lambda b: _input(b, "/nowhere.txt"), "cannot be read .no such file"),
    Case(
        "predict: a backbone that is missing",
        lambda b: b.predict("--backbone", "/nowhere"),
        "'/nowhere': no such folder or hub model",
    ),
    Case(
        "predict: over its own input", lambda b: b.predict("--output", str(b.folder / "texts.txt")), "would overwrite"
    ),
]


def _input(bench: Bench, source: str) -> list[str]:
    adapter = str(bench.base / "run" / "adapter")
    return ["predict", "--adapter", adapter, "--input", source, "--format", "txt", "--device", "cpu"]


CASES = [*ADAPTERS, *PREDICT]
