"""The config of a comparison: methods x backbones x data sets x training sizes x seeds, and the cells it is made of."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from pipeline.backbone.config import TrustRemoteCode
from pipeline.comparison.alike import check_alike
from pipeline.config import RunConfig, Seed, parse_config
from pipeline.core.artefact import sha256_of
from pipeline.core.bounds import MOST_CELLS, MOST_SHARES
from pipeline.core.config_file import apply_override, read_yaml, set_key
from pipeline.core.errors import UserError
from pipeline.core.paths import LONGEST_NAME, is_plain_name
from pipeline.core.settings import Distinct, PathSetting, Settings
from pipeline.data.config import DataConfig
from pipeline.methods import MethodConfig

Part = dict[str, dict[str, Any]]
"""Sections of a run config, e.g. {train: {max_steps: 100}}."""


def _size(given: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(given)
    except ValidationError:  # which would name both types, by keys that nobody wrote
        raise ValueError("must be all, or a number of texts from 1 on") from None


Size = Annotated[PositiveInt | Literal["all"], WrapValidator(_size)]


class ComparisonConfig(Settings):
    """compare.yaml. A cell's run config is `base`, overlaid by its backbone's, data set's and method's sections."""

    dir: PathSetting
    """Where the results, and the runs they come from, are written."""
    base: Part = {}
    """What all runs share."""
    backbones: dict[str, Part] = Field(min_length=1)
    """Name -> sections, with backbone.name_or_path."""
    datasets: dict[str, Part] = Field(min_length=1)
    """Name -> sections: data, labels, and train.best_metric, the metric that counts; log_loss compares by accuracy."""
    methods: dict[str, Part] = Field(min_length=1)
    """Name -> sections; method.name is the name itself unless given."""
    about: dict[str, str] = {}
    """Data set -> what it is, for those who read the report."""
    reference: str | None = None
    """The method that all others are compared with; null: the baseline that is best on validation.
    A method of your own is not a baseline, unless its class says so (`is_baseline`)."""
    sizes: Distinct[Size] = Field(default=["all"], min_length=1)
    """How many texts of every label to train on, or all; a label that has fewer gives all of its texts."""
    split: Literal["test", "validation"] = "test"
    """What is compared on. validation: for ablations, by which settings are chosen; the test split is not looked at."""
    seeds: Distinct[Seed] = Field(default=[0, 1, 2, 3, 4], min_length=1)
    """Settings of the grid are chosen with the first seed; the chosen one is run with all seeds."""
    published: dict[str, dict[str, dict[str, float]]] = {}
    """Backbone -> data set -> method -> a value from elsewhere, in the same metric, to stand beside ours."""
    grid: dict[str, Annotated[Distinct[Any], Field(min_length=1)]] = {}
    """section.key -> values to try. Methods that take steps are tuned over all combinations, on validation; other
    methods only over keys of the section labels (such as labels.template)."""
    trust_remote_code: TrustRemoteCode = False
    """Run the code that ships with the backbones."""

    def trusted(self, trust_remote_code: bool) -> "ComparisonConfig":
        """The same with this said of `trust_remote_code`."""
        return self.model_copy(update={"trust_remote_code": trust_remote_code})

    @field_validator("grid", mode="before")
    @classmethod
    def _comes_in_sections(cls, grid: Any) -> Any:
        """An override `grid.train.epochs=[1, 2]` is read as {train: {epochs: [1, 2]}}."""
        if not isinstance(grid, dict):
            return grid
        found: dict[Any, Any] = {}
        for key, values in grid.items():
            inside = isinstance(values, dict)
            found |= {f"{key}.{name}": own for name, own in values.items()} if inside else {key: values}
        return found

    @field_validator("backbones", "datasets", "methods")
    @classmethod
    def _can_be_folders(cls, parts: dict[str, Part]) -> dict[str, Part]:
        for name in parts:
            if not is_plain_name(name):
                raise ValueError(
                    f"{name!r} becomes a folder: take a name without / and \\, that starts with no dot, of at most "
                    f"{LONGEST_NAME} bytes"
                )
        return parts


@dataclass(frozen=True)
class Group:
    """What is tuned once, and then run with every seed."""

    dataset: str
    backbone: str
    method: str
    size: int | str
    """Training texts of every label, or all."""

    @property
    def cell(self) -> str:
        """What messages call its cells."""
        return f"cell {self.dataset}/{self.backbone}/{self.method}"

    @property
    def path(self) -> Path:
        """Where its runs lie below the comparison's directory."""
        return Path("runs", self.dataset, self.backbone, self.method, str(self.size))


def load_comparison(file: str | Path, overrides: Sequence[str] = ()) -> ComparisonConfig:
    """Reads compare.yaml and applies `key=value`. Raises UserError for every fault, those of all cells included."""
    values = read_yaml(Path(file))
    for override in overrides:
        apply_override(values, override)
    try:
        comparison = ComparisonConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"'{'.'.join(map(str, fault['loc']))}': {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        )
        raise UserError(f"{file}: {faults}") from error
    if comparison.reference not in (None, *comparison.methods):
        raise UserError(
            f"{file}: reference '{comparison.reference}' is not one of methods: {', '.join(comparison.methods)}"
        )
    if strange := sorted(comparison.about.keys() - comparison.datasets.keys()):
        raise UserError(f"{file}: about.{strange[0]} is not one of datasets: {', '.join(comparison.datasets)}")
    _check_published(comparison, file)
    _check_count(comparison, file)
    cells = ((group, config) for group in groups(comparison) for config in _checked(comparison, group))
    check_alike(((group.dataset, group.cell, config) for group, config in cells), comparison.split)
    return comparison


def configs_of(comparison: ComparisonConfig, group: Group) -> Iterator[RunConfig]:
    """A group's run configs, with the first seed."""
    for setting in settings(comparison):
        yield cell_config(comparison, group, setting, comparison.seeds[0])


def groups(comparison: ComparisonConfig) -> list[Group]:
    """All there are, in an order that keeps a data set's together."""
    axes = (comparison.datasets, comparison.backbones, comparison.methods, comparison.sizes)
    return [Group(*names) for names in itertools.product(*axes)]


def share_of(groups: list[Group], share: tuple[int, int]) -> list[Group]:
    """The i-th of n shares (i, n). Methods and data sets differ in cost: each share has about as many of both."""
    number, count = share
    shares: list[list[Group]] = [[] for _ in range(count)]
    for group in sorted(groups, key=lambda group: group.method):
        loads = [(sum(other.dataset == group.dataset for other in part), len(part)) for part in shares]
        shares[loads.index(min(loads))].append(group)
    return [group for group in groups if group in shares[number]]


def settings(comparison: ComparisonConfig, method: MethodConfig | None = None) -> list[dict[str, Any]]:
    """All points of the grid; one empty point where there is no grid.

    For a `method` without steps, which has no learning rate and the like: those of the labels' words alone.
    """
    grid = comparison.grid
    if method is not None and not method.takes_steps:
        grid = {key: values for key, values in grid.items() if key.partition(".")[0] == "labels"}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def cell_config(comparison: ComparisonConfig, group: Group, setting: dict[str, Any], seed: int) -> RunConfig:
    """The run config of one cell."""
    parts = [comparison.base, comparison.backbones[group.backbone], comparison.datasets[group.dataset]]
    values: Part = {"method": {"name": group.method}}
    for part in (*parts, comparison.methods[group.method]):
        for section, keys in part.items():
            values[section] = values.get(section, {}) | keys
    for key, value in setting.items():
        set_key(values, key, value)
    if "run" in values:  # would be replaced, and nobody would know
        raise UserError(f"{group.cell}: section run follows from the comparison's dir and seeds: set those instead")
    if "splits" in values.get("evaluate", {}):
        raise UserError(f"{group.cell}: evaluate.splits follows from the comparison's split: set that instead")
    folder = Path(comparison.dir, group.path, _folder_of(setting), f"seed-{seed}")
    values["run"] = {"dir": str(folder), "seed": seed}
    if group.size != "all":
        data = values.get("data", {})
        _check_size(comparison, group, data)
        values["data"] = data | {"train_limit": None, "train_per_label": group.size}
    config = parse_config(values, source=group.cell)
    return config.trusted(comparison.trust_remote_code)


def _check_size(comparison: ComparisonConfig, group: Group, data: dict[str, Any]) -> None:
    """Beside the size `all` a limit is that of all texts; where there is no such size it would count for nothing."""
    for key in ("train_limit", "train_per_label"):
        if "all" not in comparison.sizes and data.get(key) is not None:
            raise UserError(f"{group.cell}: data.{key} and sizes both say how many texts to train on: drop one")


def _folder_of(setting: dict[str, Any]) -> str:
    """The folder of one point of the grid: its values for reading, or where those cannot be a name, their hash."""
    name = "_".join(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items()) or "only"
    return name if is_plain_name(name) else f"setting-{sha256_of(name)[:16]}"


def _check_count(comparison: ComparisonConfig, file: str | Path) -> None:
    axes = (comparison.datasets, comparison.backbones, comparison.methods, comparison.sizes, comparison.seeds)
    count = math.prod(map(len, (*axes, *comparison.grid.values())))
    if count > MOST_CELLS:
        raise UserError(f"{file}: makes {count:,} runs, at most {MOST_CELLS:,} are taken: shorten its lists")


def _check_published(comparison: ComparisonConfig, file: str | Path) -> None:
    known = {(group.backbone, group.dataset, group.method) for group in groups(comparison)}
    for backbone, datasets in comparison.published.items():
        for dataset, methods in datasets.items():
            for method in methods:
                if (backbone, dataset, method) not in known:
                    raise UserError(f"{file}: published.{backbone}.{dataset}.{method} is not a cell of this comparison")


def _checked(comparison: ComparisonConfig, group: Group) -> list[RunConfig]:
    """The configs that a group is run with, with the first seed. Faults at any point of the grid are raised."""
    configs = list(configs_of(comparison, group))
    for config in configs:
        _check(group.cell, config.data)
    own = settings(comparison, configs[0].method)
    if own == settings(comparison):
        return configs
    return [cell_config(comparison, group, setting, comparison.seeds[0]) for setting in own]


def _check(where: str, data: DataConfig) -> None:
    if not {"validation", "test"} <= set(data.splits):
        raise UserError(
            f"{where}: data.validation (to choose settings on) and data.test (to compare on) are needed, or data.split"
        )


def parse_share(text: str, option: str = "--cells") -> tuple[int, int]:
    """`I/N` as numbers. Raises UserError, which names the option, where it is not a share."""
    first, slash, count = text.partition("/")
    numbers = slash and first.isdecimal() and count.isdecimal() and max(len(first), len(count)) <= len(str(MOST_SHARES))
    if not (numbers and int(first) < int(count) <= MOST_SHARES):
        raise UserError(f"{option} {text!r}: write I/N with I from 0 to N - 1, such as 0/4, and N up to {MOST_SHARES}")
    return int(first), int(count)


def describe(comparison: ComparisonConfig) -> str:
    """What will be run: the groups, and how many runs they are made of."""
    lines = []
    runs = 0
    for group in groups(comparison):
        method = next(configs_of(comparison, group)).method
        # The setting that is chosen was tried with the first seed.
        count = (len(comparison.seeds) if method.is_trained else 1) + len(settings(comparison, method)) - 1
        runs += count
        lines.append(f"{group.path}: {count} runs, {method.name}")
    return "\n".join([*lines, f"{len(lines)} groups, {runs} runs"])
