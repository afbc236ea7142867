"""Backbones and tokenizers: config.json, safetensors, index, tokenizer files, and names."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.case import Bench, Case, change_json, deep

Spoil = Callable[[Path], object]


def spoilt(name: str, spoil: Spoil, says: str, command: str = "dry_run") -> Case:
    """A copy of the backbone in which something is changed."""

    def make(bench: Bench) -> list[str]:
        backbone = bench.copy("backbone")
        spoil(backbone)
        key = f"backbone.name_or_path={backbone}"
        return bench.dry_run(key) if command == "dry_run" else bench.run(command, key)

    return Case(name, make, says)


def said(name: str, says: str, /, **values: Any) -> Case:
    """Keys of config.json."""
    return spoilt(f"config.json: {name}", lambda folder: change_json(folder / "config.json", **values), says)


def written(name: str, file: str, content: str | bytes, says: str) -> Case:
    data = content.encode() if isinstance(content, str) else content
    return spoilt(f"{file}: {name}", lambda folder: (folder / file).write_bytes(data), says)


def header(name: str, content: object, says: str, rest: bytes = b"", command: str = "dry_run") -> Case:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return weights(name, struct.pack("<Q", len(raw)) + raw + rest, says, command)


def weights(name: str, content: bytes, says: str, command: str = "dry_run") -> Case:
    return spoilt(f"weights: {name}", lambda folder: (folder / "model.safetensors").write_bytes(content), says, command)


def special(name: str, file: str, says: str, target: str | None = None) -> Case:
    """A pipe, or a link to `target`, in the place of a file."""
    import os

    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file) if target is None else (folder / file).symlink_to(target)

    return spoilt(f"{file}: {name}", spoil, says)


def sparse(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 34)


def named(name: str, value: str, says: str) -> Case:
    return Case(f"backbone: {name}", lambda bench: bench.dry_run(f"backbone.name_or_path={json.dumps(value)}"), says)


def index(name: str, content: object, says: str) -> Case:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "model.safetensors.index.json").write_text(text)

    return spoilt(f"index: {name}", spoil, says)


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"norm.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


WHERE = "config.json cannot be read: "
CONFIG = [
    said("10^12 layers", "num_hidden_layers is 1e[+]12, at most 10,000", num_hidden_layers=10**12),
    said("10^30 words", "vocab_size is 1e[+]30", vocab_size=10**30),
    said("10^12 positions", "max_position_embeddings is 1e[+]12", max_position_embeddings=10**12),
    said("a width of 10^12", "hidden_size is 1e[+]12, at most", hidden_size=10**12),
    said("no heads", "num_attention_heads is 0", num_attention_heads=0),
    said("heads below nothing", "num_attention_heads is -4", num_attention_heads=-4),
    said("half a layer", WHERE, num_hidden_layers=1.5),
    said("no layers", "num_hidden_layers is 0", num_hidden_layers=0),
    said("layers as a text", WHERE, num_hidden_layers="many"),
    said("an unknown family", "config.json cannot be read: .*model type `nobody`", model_type="nobody"),
    said("a family as a list", WHERE, model_type=["llama"]),
    said(
        "code of its own",
        "custom code .*give --trust-remote-code",
        model_type="own",
        auto_map={"AutoConfig": "own.Own"},
    ),
    written("nested 100,000 deep", "config.json", deep("[", "]"), WHERE),
    written("objects nested 100,000 deep", "config.json", deep('{"a":', "}"), WHERE),
    written("5,000 digits", "config.json", f'{{"model_type": "llama", "vocab_size": {"1" * 5000}}}', WHERE),
    written("a list", "config.json", "[]", WHERE),
    written("empty", "config.json", "", WHERE),
    written("not UTF-8", "config.json", b"\xff\xfe\xff", WHERE),
    special("a pipe", "config.json", "a pipe, not a file .config.json"),
    special("/dev/zero", "config.json", "a device, not a file .config.json", "/dev/zero"),
    special("a link that leads nowhere", "config.json", WHERE, "/nowhere/config.json"),
]

WEIGHTS = [
    weights("a header of 2^63 bytes", struct.pack("<Q", 2**63) + b"{}", "so it is cut off"),
    weights("a header larger than the file", struct.pack("<Q", 10**6) + b"{}", "so it is cut off"),
    weights("empty", b"", "so it is cut off"),
    weights("a few bytes", b"\0\0\0", "so it is cut off"),
    header("nested 100,000 deep", deep("[", "]").encode(), "not a readable safetensors"),
    header("a list", [], "not a readable safetensors"),
    header("a tensor of 10^18 numbers", tensor([10**9, 10**9], [0, 4]), "do not fit the bytes", b"\0" * 4),
    header("a tensor that ends in 2^62", tensor([2], [0, 2**62]), "cut off"),
    header("a tensor below nothing", tensor([-1], [0, 4]), "do not fit", b"\0" * 4),
    header("half a number", tensor([1.5], [0, 6]), "type and shape do not fit", b"\0" * 6),  # type: ignore[list-item]
    header("a gap", tensor([1], [4, 8]), "do not fit", b"\0" * 8),
    header("a type nobody knows", tensor([1], [0, 4], "F128"), "needs tensors it lacks", b"\0" * 4, "run"),
    header("no tensor at all", {}, "needs tensors it lacks", b"", "run"),
    special("a pipe", "model.safetensors", "a pipe, not a file .model.safetensors"),
    special("/dev/zero", "model.safetensors", "a device, not a file", "/dev/zero"),
    spoilt("weights: none", lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
    index("a file of another folder", {"weight_map": {"a": "../x.safetensors"}}, "not beside it"),
    index("nested 100,000 deep", deep("[", "]"), "not a safetensors index"),
    index("a list", {"weight_map": [1]}, "not a safetensors index"),
    index("a file that is missing", {"weight_map": {"a": "none.safetensors"}}, "none.safetensors is missing"),
]

TOKENIZERS = [
    written("empty", "tokenizer.json", "", "no tokenizer could be loaded"),
    written("nested 100,000 deep", "tokenizer.json", deep("[", "]"), "no tokenizer could be loaded"),
    written("an empty object", "tokenizer.json", "{}", "no tokenizer could be loaded"),
    written(
        "a number of 5,000 digits", "tokenizer.json", f'{{"version": {"1" * 5000}}}', "no tokenizer could be loaded"
    ),
    written("nested 100,000 deep", "tokenizer_config.json", deep("[", "]"), "no tokenizer could be loaded"),
    special("a pipe", "tokenizer.json", "a pipe, not a file .tokenizer.json"),
    special("/dev/zero", "tokenizer.json", "a device, not a file", "/dev/zero"),
    spoilt("tokenizer.json: 16 GB of nothing", sparse, "at most 268,435,456 are read .tokenizer.json"),
    spoilt(
        "tokenizer: none",
        lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
        "no tokenizer could be loaded",
    ),
]

NAMES = [
    named("no name", "", "backbone.name_or_path"),
    named("a file", "/etc/passwd", "backbone.name_or_path '/etc/passwd'"),
    named("a null", "a\0b", "backbone.name_or_path"),
    named("5,000 characters", "x" * 5000, "^backbone.name_or_path 'xxx.*left out"),
    named("a folder of nothing", "/proc/sys", "'/proc/sys': config.json cannot be read"),
    named("devices", "/dev", "'/dev' cannot be read: it is a (device|pipe|socket), not a file"),
    named("a package that is not installed", "package:nobody_has_this/x", "is not installed"),
    named("a way out of a package", "package:torch/../../../../etc", "leads out of the package"),
    named("a package with a dot", "package:os.path/x", "is not installed"),
    named("nothing in a package", "package:torch/nothing", "the package torch has no such folder"),
    named("offline", "nobody/nothing", "hub cannot be reached .* nobody/nothing"),
    named("escapes", "\x1b[31mred", r"\\u001b"),
]

CASES = [*CONFIG, *WEIGHTS, *TOKENIZERS, *NAMES]
