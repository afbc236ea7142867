"""Private names of other libraries: each stands in one module, is listed here, and exists in the installed version.

DeepSpeed's are in pipeline/distributed/zero.py, with a test of their own.
"""

import ast
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline"

# module of ours -> private attribute -> what it is, to be looked up; None where only a living object has it
PRIVATE_NAMES: dict[str, dict[str, str | None]] = {
    "__main__": {"_run_exitfuncs": "atexit._run_exitfuncs"},
    "backbone.model_config": {"_attn_implementation": "transformers.PretrainedConfig._attn_implementation"},
    "backbone.carriers": {"_attn_implementation": "transformers.PretrainedConfig._attn_implementation"},
    "backbone.experts": {
        "_apply_gate": None,
        "_experts_implementation": "transformers.PretrainedConfig._experts_implementation",
    },
    "backbone.loading": {"_attn_implementation": "transformers.PretrainedConfig._attn_implementation"},
    "backbone.probe": {
        "_attn_implementation": "transformers.PretrainedConfig._attn_implementation",
        "_experts_implementation": "transformers.PretrainedConfig._experts_implementation",
        "torch._subclasses.fake_tensor": "torch._subclasses.fake_tensor.FakeTensorMode",
    },
    "backbone.rope": {"_buffers": None},
    "cli.completion": {"_actions": None},
    "engine.startup": {"_reset_state": "accelerate.state.AcceleratorState._reset_state"},
    "estimate.inventory": {
        "_cdata": "torch.UntypedStorage._cdata",
        "torch._subclasses.fake_tensor": "torch._subclasses.fake_tensor.FakeTensorMode",
    },
    "methods.lora": {"_register_custom_module": "peft.LoraConfig._register_custom_module"},
}
FENCED = {"distributed.zero"}
PUBLIC = {"_exit", "_asdict", "_replace"}
"""Documented for use, in spite of their underscore: os._exit, named tuples."""


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def private_names(file: Path) -> Iterator[tuple[str, int]]:
    """Names with one underscore in front that are neither of this module nor of an object's own class."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)} | PUBLIC
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and _is_private(node.attr)
            and not (_is_self(node.value) or node.attr in own)
        ):
            yield node.attr, node.lineno
        if isinstance(node, ast.ImportFrom) and any(map(_is_private, (node.module or "").split("."))):
            yield node.module or "", node.lineno


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_no_private_name_is_used_that_is_not_listed() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        module = module_of(file)
        if module in FENCED:
            continue
        for name, line in private_names(file):
            assert name in PRIVATE_NAMES.get(module, {}), f"{file}:{line} uses '{name}': list it here, or do without"


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in PRIVATE_NAMES.items() for n in names])
def test_a_private_name_exists(module: str, name: str) -> None:
    what = PRIVATE_NAMES[module][name]
    used = {found for found, _ in private_names(PACKAGE.joinpath(*module.split(".")).with_suffix(".py"))}
    assert name in used, f"pipeline.{module} does not use '{name}' any more: take it off the list"
    if what is not None:
        try:
            pkgutil.resolve_name(what)
        except (ImportError, AttributeError):
            pytest.fail(f"{what} is missing from the installed version: mend pipeline/{module.replace('.', '/')}.py")
