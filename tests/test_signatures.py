"""Functions take what they need: a section of the config, or a value, and not the whole of it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline"

WHOLE = {
    "engine.startup.join",
    "engine.startup.start",
    "stages.choose_reading.choose_reading",
    "stages.dry_run.plan",
    "stages.encode_labels.encode_labels",
    "stages.encode_texts.encode_texts",
    "stages.estimate.estimate",
    "stages.evaluate.evaluate",
    "stages.preprocess.preprocess",
    "stages.run.run",
    "stages.train.train",
}
"""The stages, and what starts them. Keep these at eleven or fewer."""


def takers_of(name: str) -> set[str]:
    """Functions and methods that have a parameter annotated with this class."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                said = [ast.unparse(each.annotation) for each in parameters if each and each.annotation]
                if any(name in annotation.replace("'", "").split(" | ") for annotation in said):
                    found.add(f"{module}.{node.name}")
    return found


def test_few_functions_take_the_whole_config() -> None:
    assert takers_of("RunConfig") == WHOLE and len(WHOLE) <= 11


def test_they_are_found() -> None:
    """Of a class that others take, so that an empty answer above would be seen."""
    assert {"stages.dry_run._steps", "estimate.case.build_case"} <= takers_of("Sections")
