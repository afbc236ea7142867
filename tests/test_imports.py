"""Imports go one way, and nothing heavy is imported before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pipeline"

# cli -> stages -> (engine, model, scoring, reports) -> methods -> (backbone, data) -> config pieces. A room may import
# from itself and from rooms with a smaller number; what stands beside each other in brackets shares one.
LEVELS = {"pieces": 0, "backbone": 1, "data": 1, "methods": 2, "middle": 3, "stages": 4, "cli": 5}
PIECES = {
    "errors",
    "settings",
    "yaml12",
    "launcher",
    "rundir",
    "integrity",
    "ownership",
    "escapes",
    "paths",
    "evaluation_config",
    "backbone.config",
    "data.config",
    "data.labels",
    "engine.config",
}
PIECES |= {"backbone.facts", "backbone.injection"}


def room(module: str) -> str:
    """Of a module named without `pipeline.`"""
    first = module.split(".")[0]
    if module in PIECES:
        return "pieces"
    if first in ("backbone", "data", "methods", "stages"):
        return first
    if first == "distributed":
        return "pieces"
    return "cli" if first in ("cli", "__main__", "") else "middle"


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(file: Path, *, late: bool = True) -> set[str]:
    """Full names of the modules a file imports; without `late`, at its top level only."""
    tree = ast.parse(file.read_text())
    found = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            found.add(node.module)
            # `from pipeline.backbone import deberta` imports a module too.
            path = REPOSITORY / node.module.replace(".", "/")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if (path / f"{alias.name}.py").is_file()}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    here = room(name_of(file))
    for name in imports(file):
        if name == "pipeline" or not name.startswith("pipeline."):
            continue
        there = room(name.removeprefix("pipeline."))
        assert there == here or LEVELS[there] < LEVELS[here], f"{name_of(file)} ({here}) imports {name} ({there})"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("methods", {"deepspeed", "accelerate", "safetensors", "pathlib", "os", "transformers"}),
        ("data", {"deepspeed", "accelerate"}),
        ("backbone", {"datasets", "tokenizers"}),
    ],
)
def test_rooms_know_nothing_of_what_is_not_theirs(folder: str, forbidden: set[str]) -> None:
    for file in sorted((PACKAGE / folder).rglob("*.py")):
        assert not {name.split(".")[0] for name in imports(file)} & forbidden, name_of(file)


def test_deepspeed_is_fenced() -> None:
    """Its names, many of them private, stand in one module."""
    assert [name_of(file) for file in FILES if "deepspeed" in {name.split(".")[0] for name in imports(file)}] == [
        "distributed.zero"
    ]


def test_there_are_no_cycles() -> None:
    graph = {
        f"pipeline.{name_of(file)}": {name for name in imports(file, late=False) if name.startswith("pipeline.")}
        for file in FILES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for following in graph.get(name, ()):
                visit(following, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_package_and_help_do_not_wait_for_torch() -> None:
    code = (
        "import sys, pipeline\n"
        "from pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'deepspeed', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for command in ("run", "preprocess", "encode-labels", "train", "evaluate", "predict", "estimate", "doctor"):
        assert command in ended.stdout
