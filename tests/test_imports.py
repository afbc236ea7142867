"""Imports go one way, and nothing heavy is imported before it is needed.

covers __init__
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pipeline"

ROOMS = [
    "core",
    "distributed",
    "backbone",
    "data",
    "methods",
    "evaluation",
    "adapter",
    "config",
    "engine",
    "export",
    "training",
    "estimate",
    "comparison",
    "reports",
    "doctor",
    "serving",
    "stages",
    "classifier",
    "cli",
]
"""A room imports from those above it and from itself."""
LOOSE = {"__init__", "__main__", "config"}
"""Modules of `pipeline/` that stand in no room."""
SECTIONS = {"training.config", "engine.config", "evaluation.config", "data.config", "backbone.config"}
"""Keys of one room, joined by pipeline/config.py. They need not wait for their room: they import nothing heavy."""


JOINED = ROOMS[ROOMS.index("config") :]
"""Rooms that know the whole config, and may take a section of it."""


def room(module: str) -> str:
    """Of a module named without `pipeline.`"""
    return module.split(".")[0].replace("__main__", "cli") or "cli"


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
        there = name.removeprefix("pipeline.")
        if name == "pipeline" or not name.startswith("pipeline.") or (here in JOINED and there in SECTIONS):
            continue
        assert ROOMS.index(room(there)) <= ROOMS.index(here), f"{name_of(file)} imports {name}, which is below it"


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_sections_of_the_config_stand_on_the_ground(section: str) -> None:
    mine = {name for name in imports(PACKAGE.joinpath(*section.split(".")).with_suffix(".py")) if "pipeline." in name}
    assert {room(name.removeprefix("pipeline.")) for name in mine} <= {"core", "distributed", room(section)}


def test_nothing_stands_loose() -> None:
    assert {file.stem for file in PACKAGE.glob("*.py")} == LOOSE
    assert {folder.name for folder in PACKAGE.iterdir() if list(folder.glob("*.py"))} | {"config"} == set(ROOMS)


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("methods", {"deepspeed", "accelerate", "safetensors", "pathlib", "os", "transformers"}),
        ("core", {"torch", "transformers", "deepspeed", "accelerate", "datasets"}),
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


def test_a_config_does_not_wait_for_models() -> None:
    code = "import sys, pipeline.config; print({'transformers', 'peft', 'deepspeed', 'datasets'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"


def test_predict_and_train_do_not_wait_for_what_others_need() -> None:
    code = (
        "import sys, torch, pipeline.stages.predict\n"
        "from pipeline.backbone.int8 import Int8Rows\n"
        "Int8Rows.quantize(torch.ones(1, 4))\n"
        "late = {'datasets', 'deepspeed', 'sklearn', 'torch._inductor.compile_fx'}\n"
        "early = late & set(sys.modules)\n"
        "import pipeline.stages.train\n"
        "print(early | {'sklearn', 'torch._inductor.compile_fx'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"
