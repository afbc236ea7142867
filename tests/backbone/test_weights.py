"""Safetensors checkpoints as they come, whole and faulty.

covers backbone/weight_names
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.weight_names import match_names
from pipeline.backbone.weights import INDEX, WEIGHTS, WEIGHTS_PART, fingerprint, open_checkpoint
from pipeline.core.errors import UserError
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved"), "llama_gqa")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def config_of(path: Path) -> BackboneConfig:
    return BackboneConfig(name_or_path=str(path), dtype="float32")


def split_into_two(folder: Path) -> dict[str, str]:
    """Turns a single-file checkpoint into two files and an index, which it returns."""
    weights = load_file(folder / WEIGHTS)
    placed = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(sorted(weights))}
    for file in set(placed.values()):
        save_file({name: weights[name] for name in placed if placed[name] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    return placed


@pytest.mark.parametrize("split", [False, True])
def test_rows_and_columns_are_those_of_the_tensor(folder: Path, split: bool) -> None:
    name, weights = "layers.0.mlp.down_proj.weight", load_file(folder / WEIGHTS)
    if split:
        split_into_two(folder)
    checkpoint = open_checkpoint(config_of(folder))
    assert {stored: tensor.shape for stored, tensor in checkpoint.tensors.items()} == {
        stored: tuple(tensor.shape) for stored, tensor in weights.items()
    }
    assert torch.equal(checkpoint.read_rows(name, 3, 7), weights[name][3:7])
    assert torch.equal(checkpoint.read_rows(name, 3, 7, transposed=True), weights[name].t()[3:7])
    assert torch.equal(checkpoint.read_rows("norm.weight", 2, 5), weights["norm.weight"][2:5])


@pytest.mark.parametrize("transposed", [False, True])
def test_only_the_wanted_bytes_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    checkpoint, counts, read = open_checkpoint(config_of(folder)), [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: counts.append(read(*arguments)) or counts[-1])
    rows = checkpoint.read_rows("layers.0.mlp.down_proj.weight", 3, 7, transposed)
    assert sum(counts) == rows.nbytes < 16 * 32 * 4 / 2


def test_a_scalar_is_one_row(tmp_path: Path, folder: Path) -> None:
    save_file({"scalar": torch.tensor(3.0)}, folder / WEIGHTS)
    assert open_checkpoint(config_of(folder)).read_rows("scalar", 0, 1).tolist() == [3.0]


def test_fingerprint_tells_models_of_one_shape_apart(folder: Path, saved: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["layers.1.mlp.up_proj.weight"] += 0.01
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    first, second = (fingerprint(config_of(path), open_checkpoint(config_of(path))) for path in (saved, folder))
    assert first == fingerprint(config_of(saved), open_checkpoint(config_of(saved)))
    assert set(first) == {"config.json", WEIGHTS, WEIGHTS_PART}
    assert first["config.json"] == second["config.json"]
    assert first[WEIGHTS] != second[WEIGHTS] and first[WEIGHTS_PART] != second[WEIGHTS_PART]


LARGE = {"embedding": (3000, 256), "expert": (64, 16, 1024), "output": (256, 4096), "norm": (256,), "scale": ()}


def large_fingerprint(folder: Path, altered: str | None = None, *where: slice) -> str:
    """Of weights that are mostly larger than what is sampled of them, one of them altered in a place."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.rand(size, generator=generator) + 1 for name, size in LARGE.items()}
    if altered is not None:
        weights[altered][where] *= -1
    save_file(weights, folder / WEIGHTS)
    return fingerprint(config_of(folder), open_checkpoint(config_of(folder)))[WEIGHTS_PART]


@pytest.mark.parametrize("name", LARGE)
def test_fingerprint_sees_a_change_to_every_tensor(tmp_path: Path, name: str) -> None:
    untouched = large_fingerprint(tmp_path)
    assert untouched == large_fingerprint(tmp_path) != large_fingerprint(tmp_path, name)


@pytest.mark.parametrize("name", ["embedding", "expert", "output"])
def test_fingerprint_sees_a_change_to_a_32nd_of_the_rows_wherever_it_is(tmp_path: Path, name: str) -> None:
    untouched = large_fingerprint(tmp_path)
    count = LARGE[name][0] // 32 + 1
    for start in range(0, LARGE[name][0] - count, count):
        assert large_fingerprint(tmp_path, name, slice(start, start + count)) != untouched, start


def test_fingerprint_sees_a_change_to_some_columns(tmp_path: Path) -> None:
    untouched = large_fingerprint(tmp_path)
    for start in range(0, 4096, 512):
        assert large_fingerprint(tmp_path, "output", slice(None), slice(start, start + 512)) != untouched, start


def test_fingerprint_reads_small_tensors_whole(tmp_path: Path) -> None:
    untouched = large_fingerprint(tmp_path)
    for place in range(0, 256, 17):
        assert large_fingerprint(tmp_path, "norm", slice(place, place + 1)) != untouched, place


def test_fingerprint_sees_two_tensors_of_one_size_exchanged(folder: Path, saved: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    first, second = "layers.0.mlp.up_proj.weight", "layers.0.mlp.gate_proj.weight"
    weights[first], weights[second] = weights[second], weights[first]
    save_file(weights, folder / WEIGHTS)
    before, after = (fingerprint(config_of(path), open_checkpoint(config_of(path))) for path in (saved, folder))
    assert before[WEIGHTS_PART] != after[WEIGHTS_PART]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        match_names(tiny_model("llama_gqa"), open_checkpoint(config_of(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_such_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "check the name" in refusal(tmp_path / "nowhere")
    assert "check the name" in refusal(Path("no-such-owner/no-such-model"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickles_are_refused_with_advice(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    assert "convert" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    assert WEIGHTS in refusal(folder)


def test_a_file_that_is_no_safetensors_is_named(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    assert WEIGHTS in refusal(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F64"}, "norm.weight's type and shape do not fit"),
        ({"dtype": "BF16"}, "norm.weight's type and shape do not fit"),
        ({"shape": [4, 5]}, "norm.weight's type and shape do not fit"),
        ({"shape": [-4, -4]}, "norm.weight's type and shape do not fit"),
        ({"shape": [16.0]}, "norm.weight's type and shape do not fit"),
        ({"shape": 16}, "not a readable safetensors file"),
        ({"dtype": ["F32"]}, "norm.weight's type and shape do not fit"),
        ({"data_offsets": [0, 64]}, "where its header wants"),
        ({"data_offsets": [0]}, "not a readable safetensors file"),
        ({"data_offsets": [0, 1 << 60]}, "where its header wants"),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_its_data_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    file = folder / WEIGHTS
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["norm.weight"] |= change
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])
    assert f"{file}: " in (told := refusal(folder)) and message in told


@pytest.mark.parametrize(
    "header", [b"[" * 200_000, b'{"a": 3}', b"[]", b"\xff" * 9], ids=["deep", "int", "list", "text"]
)
def test_a_header_that_is_none_is_refused(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    assert "not a readable safetensors file" in refusal(folder)


def test_a_header_of_an_absurd_length_is_not_read(folder: Path) -> None:
    with (folder / WEIGHTS).open("wb") as stream:
        stream.write((1 << 36).to_bytes(8, "little"))
        stream.truncate(1 << 37)  # sparse
    assert "so it is damaged" in refusal(folder)


def test_a_file_cut_while_it_is_read_is_an_error(folder: Path) -> None:
    checkpoint = open_checkpoint(config_of(folder))
    checkpoint.read_rows("norm.weight", 0, 1)
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate(3000)
    with pytest.raises(UserError, match="cannot read embed_tokens"):
        checkpoint.read_rows("embed_tokens.weight", 0, 320)


def test_an_index_naming_a_missing_file(folder: Path) -> None:
    split_into_two(folder)
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors is missing" in refusal(folder)


def test_an_index_naming_a_missing_tensor(folder: Path) -> None:
    placed = split_into_two(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": placed | {"lost.weight": "model-1.safetensors"}}))
    assert "lost.weight" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index(folder: Path, text: str) -> None:
    split_into_two(folder)
    (folder / INDEX).write_text(text)
    assert INDEX in refusal(folder)


def changed(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Rewrites the weights with tensors put in, replaced or (None) taken out."""
    weights = load_file(folder / WEIGHTS) | changes
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / WEIGHTS)
    return folder


def test_missing_tensors_are_listed(folder: Path) -> None:
    message = refusal(changed(folder, **{"norm.weight": None, "layers.1.mlp.up_proj.weight": None}))
    assert "layers.1.mlp.up_proj.weight, norm.weight" in message


def test_unexpected_tensors_are_listed(folder: Path) -> None:
    message = refusal(changed(folder, **{"layers.2.mlp.up_proj.weight": torch.zeros(3)}))
    assert "layers.2.mlp.up_proj.weight" in message


def test_shapes_are_compared_with_the_config(folder: Path) -> None:
    assert "norm.weight is [17], config.json wants [16]" in refusal(changed(folder, **{"norm.weight": torch.ones(17)}))


def test_quantized_tensors_are_refused(folder: Path) -> None:
    codes = torch.zeros(16, 32, dtype=torch.int8)
    assert "quantized already" in refusal(changed(folder, **{"layers.0.mlp.down_proj.weight": codes}))


def test_heads_and_old_constants_are_left_out(folder: Path) -> None:
    weights = {f"model.{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    weights |= {"lm_head.weight": torch.zeros(320, 16), "my_own_head.0.bias": torch.zeros(3)}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    save_file(weights, folder / WEIGHTS)
    sources = match_names(tiny_model("llama_gqa"), open_checkpoint(config_of(folder)))
    assert sources["layers.0.mlp.up_proj.weight"].names == ["model.layers.0.mlp.up_proj.weight"]
    assert {name for source in sources.values() for name in source.names} == {f"model.{name}" for name in sources}
