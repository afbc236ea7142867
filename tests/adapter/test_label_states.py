"""Label states: the file, its damages, and how the backbone reads hypotheses."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapter.label_states import NAMES_FILE, STATES_FILE, LabelStates, read_hypotheses
from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.facts import Form, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.core.errors import UserError
from pipeline.data.hypotheses import HypothesisTokens
from tests.support.tiny import tiny_model

CPU = torch.device("cpu")
MASK = torch.tensor([[True, True, True], [True, False, False]])


def example(dtype: torch.dtype = torch.bfloat16, backbone: str = "a") -> LabelStates:
    torch.manual_seed(0)
    states = torch.randn(2, 3, 8).to(dtype) * MASK[..., None]
    return LabelStates(["gut", "schlecht ü"], ["Es ist gut.", "Es ist schlecht."], states, MASK, {"backbone": backbone})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    states = example(dtype)
    states.save(tmp_path)
    again = LabelStates.load(tmp_path)
    assert torch.equal(again.states, states.states) and again.states.dtype == dtype
    assert torch.equal(again.mask, MASK) and again.mask.dtype == torch.bool and again.hypothesis_tokens == 3
    for part in ("names", "hypotheses", "fingerprint"):
        assert getattr(again, part) == getattr(states, part)


@pytest.mark.parametrize("name", [NAMES_FILE, STATES_FILE])
@pytest.mark.parametrize("kept", [0, 11, -1])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, kept: int) -> None:
    example().save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes().rstrip()[:kept])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as fault:
        LabelStates.load(tmp_path)
    assert "\n" not in str(fault.value)
    path.unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        LabelStates.load(tmp_path)


def test_files_of_two_runs_are_not_mixed(tmp_path: Path) -> None:
    example().save(tmp_path)
    words = (tmp_path / NAMES_FILE).read_text()
    example(backbone="b").save(tmp_path)
    (tmp_path / NAMES_FILE).write_text(words)
    with pytest.raises(UserError, match=r"label_states.safetensors' does not belong to 'labels\.json' beside it"):
        LabelStates.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"names": ["only one"]},
        {"names": ["a", "b", "c"], "hypotheses": ["a", "b", "c"]},
        {"names": None},
        {"fingerprint": {"backbone": 3}},
        {"names": ["same", "same"]},
        {"names": ["a", " "]},
        {"hypotheses": ["", "b"]},
        {"names": [], "hypotheses": []},
    ],
    ids=str,
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, change: dict) -> None:
    example().save(tmp_path)
    words = json.loads((tmp_path / NAMES_FILE).read_text())
    (tmp_path / NAMES_FILE).write_text(json.dumps(words | change))
    with pytest.raises(UserError, match="run encode-labels again"):
        LabelStates.load(tmp_path)


def test_json_that_is_no_object_and_tensors_of_something_else_are_refused(tmp_path: Path) -> None:
    example().save(tmp_path)
    path = tmp_path / STATES_FILE
    tensors = load_file(path)
    metadata = {"fingerprint": json.dumps({"backbone": "a"})}
    for wrong in ({"states": tensors["states"]}, tensors | {"states": tensors["states"][:, :2].clone()}):
        save_file(wrong, path, metadata=metadata)
        with pytest.raises(UserError, match=r"label_states\.safetensors"):
            LabelStates.load(tmp_path)
    save_file(tensors, path, metadata={"fingerprint": "{"})
    with pytest.raises(UserError, match=r"label_states\.safetensors"):
        LabelStates.load(tmp_path)
    (tmp_path / NAMES_FILE).write_text("[]")
    with pytest.raises(UserError, match=r"labels\.json"):
        LabelStates.load(tmp_path)


@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
def test_hypotheses_are_read_alone_whatever_their_company(family: str) -> None:
    network = tiny_model(family).double()
    backbone = FrozenBackbone(network, facts_of(network.config))
    lengths = [5, 2, 7, 1]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    input_ids = torch.randint(4, 300, (4, 7), generator=torch.Generator().manual_seed(0)) * mask
    for rows_per_forward in (1, 3, 32):
        reader = AsInjection(backbone, Form("prefix"))
        tokens = HypothesisTokens(input_ids, mask)
        states, injections = read_hypotheses(reader, tokens, CPU, rows_per_forward)
        later, _ = read_hypotheses(reader, tokens._replace(opening=1), CPU, rows_per_forward)
        assert torch.equal(later, states[:, 1:]), "what opens a text is read and not kept"
        assert injections is not None and injections.shape == (4, 7, Form("prefix").width(backbone.facts))
        assert not injections[~mask].any()
        assert not states[~mask].any() and not states.requires_grad
        for row, length in enumerate(lengths):
            with torch.no_grad():
                alone = network(input_ids[row : row + 1, :length]).last_hidden_state[0]
                ids = input_ids[row : row + 1, :length]
                _, [injection] = AsInjection(backbone, Form("prefix"))(ids, torch.ones_like(ids))
            torch.testing.assert_close(states[row, :length], alone)
            torch.testing.assert_close(injections[row, :length], injection)


def test_states_that_are_not_finite_are_refused() -> None:
    network = tiny_model("llama_gqa")
    network.norm.weight.data[3] = float("nan")
    backbone = FrozenBackbone(network, facts_of(network.config))
    tokens = HypothesisTokens(torch.tensor([[5, 6]]), torch.tensor([[True, True]]))
    with pytest.raises(UserError, match="states of the labels are not finite"):
        read_hypotheses(AsInjection(backbone, None), tokens, CPU)


STATES = torch.ones(2, 3, 8)


@pytest.mark.parametrize(
    "tensors",
    [
        {"states": STATES.long(), "mask": MASK},
        {"states": STATES.to(torch.float8_e4m3fn), "mask": MASK},
        {"states": STATES.index_fill(2, torch.tensor([3]), torch.nan), "mask": MASK},
        {"states": STATES.index_fill(2, torch.tensor([3]), -torch.inf), "mask": MASK},
        {"states": STATES, "mask": MASK.float()},
        {"states": STATES, "mask": MASK.long() * 7},
        {"states": STATES, "mask": torch.tensor([[True] * 3, [False] * 3])},
        {"states": STATES[:, :0], "mask": MASK[:, :0]},
        {"states": STATES[..., :0], "mask": MASK},
    ],
    ids=["int64", "float8", "nan", "inf", "float mask", "int mask", "no token", "P = 0", "H = 0"],
)
def test_states_that_no_backbone_gives_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    example().save(tmp_path)
    metadata = {"fingerprint": json.dumps({"backbone": "a"})}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / STATES_FILE, metadata=metadata)
    with pytest.raises(
        UserError, match=r"^[^\n]*label_states\.safetensors' is damaged \([^\n]*run encode-labels again$"
    ):
        LabelStates.load(tmp_path)


def test_states_of_no_labels_are_refused(tmp_path: Path) -> None:
    LabelStates([], [], torch.zeros(0, 3, 8), torch.zeros(0, 3, dtype=torch.bool), {}).save(tmp_path)
    with pytest.raises(UserError, match=r"labels\.json' is damaged"):
        LabelStates.load(tmp_path)
