"""Inputs made to hurt: each ends soon, within bounds of memory, with status 2 and one line that names what is wrong.

A sample runs with all tests; `bash launch/test.sh --hostile` runs the whole and prints what docs/security.md says.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.core.bounds import LONGEST_MESSAGE
from tests.hostile import adapters, backbones, commands, comparisons, configs, run_dirs, tables
from tests.hostile.case import Bench, Case, prepare_base
from tests.support.worlds import run_module

KINDS = {
    "configs": configs.CASES,
    "tables": tables.CASES,
    "backbones and tokenizers": backbones.CASES,
    "adapters and predict": adapters.CASES,
    "run directories": run_dirs.CASES,
    "command lines": commands.CASES,
    "comparisons": comparisons.CASES,
}
CASES = [case for cases in KINDS.values() for case in cases]
SAMPLE = [
    "yaml: aliases of aliases",
    "template: a width",
    "10^12 in train.batch_size",
    "csv: 100,000 columns",
    "parquet: a cell of 400 MB",
    "fifo as train.csv",
    "/dev/zero as train.tsv",
    "config.json: 10^12 layers",
    "weights: a header of 2^63 bytes",
    "adapter_config.json: nested 100,000 deep",
    "predict: a line without an end",
    "data/ is a link to somebody's folder",
    "compare: data files that are missing",
]
Outcome = dict[str, Any]


def attack(folder: Path, cases: Sequence[Case]) -> dict[str, Outcome]:
    """Runs the cases: of each by name its exit status, output and processor seconds. Devices stay devices."""
    base = folder / "base"
    base.mkdir()
    assert main(prepare_base(base)) == 0
    orders = []
    for number, case in enumerate(cases):
        place = folder / f"case-{number}"
        place.mkdir()
        arguments = list(case.make(Bench(base, place)))
        settings = {"streams": case.streams, "environment": case.environment, "seconds": case.seconds}
        orders.append({"name": case.name, "arguments": arguments, **settings})
    found = _serve(folder / "cases", orders)
    for device in ("null", "zero", "full"):
        assert Path("/dev", device).is_char_device(), "a case has replaced a device of this machine"
    return found


def _serve(folder: Path, orders: list[dict[str, Any]]) -> dict[str, Outcome]:
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(orders))
    run_module("tests.hostile.server", [str(folder)], timeout_seconds=300 + 300 * len(orders))
    found = {}
    for number, result in enumerate(json.loads((folder / "results.json").read_text())):
        texts = {name: (folder / f"{number}.{name}").read_text(errors="replace") for name in ("out", "err")}
        found[result["name"]] = result | texts
    return found


def fault(case: Case, outcome: Outcome) -> str | None:
    """What does not hold of a case; None where everything does."""
    if outcome["status"] != case.status:
        return f"status {outcome['status']} where {case.status} is right: {outcome['err'][-400:]}"
    if case.status == 0:
        written = outcome["out"] + outcome["err"]
        return None if re.search(case.says, written) else f"wrote {written[-400:]!r}"
    errors = re.findall(r"(?:^|\r)(?:ltune.*?: )?error: (.*)", outcome["err"], re.MULTILINE)
    if "2>&-" in case.streams:
        return None
    if len(errors) != 1 or "Traceback" in outcome["err"]:
        return f"{len(errors)} lines of error: {outcome['err'][-400:]}"
    if len(errors[0]) > LONGEST_MESSAGE + 20:
        return f"a line of {len(errors[0])} characters: {errors[0][:200]}"
    return None if re.search(case.says, errors[0]) else f"says {errors[0]!r}"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Case, Outcome]]:
    cases = {case.name: case for case in CASES if case.name in SAMPLE}
    outcomes = attack(tmp_path_factory.mktemp("sample"), list(cases.values()))
    return lambda name: (cases[name], outcomes[name])


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str, sampled: Callable[[str], tuple[Case, Outcome]]) -> None:
    assert fault(*sampled(name)) is None


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.hostile
def test_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = attack(tmp_path, CASES)
    faults = {case.name: found for case in CASES if (found := fault(case, outcomes[case.name]))}
    with capsys.disabled():
        print()
        for kind, cases in KINDS.items():
            held = sum(case.name not in faults for case in cases)
            longest = max(outcomes[case.name]["seconds"] for case in cases)
            print(f"{kind}: {len(cases)} tried, {held} held, the longest took {longest:.1f} s")
        seconds = sum(outcome["seconds"] for outcome in outcomes.values())
        print(f"in all: {len(CASES)} tried, {len(CASES) - len(faults)} held, {seconds:.0f} s")
        for name, found in faults.items():
            print(f"* {name}: {found}")
    assert not faults
