"""Data sets of the hub, and local folders that `datasets` reads, as tables: hub:NAME@REVISION:CONFIG:SPLIT."""

import csv
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.artefact import sha256_of
from pipeline.core.errors import UserError, one_line
from pipeline.data.columnar import ARROW_BATCH_ROWS, arrow_rows, names_of_ids
from pipeline.data.rows import Table

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

_HUB = re.compile(r"hub:(?P<path>[^:@]+)(@(?P<revision>[^:]+))?(:(?P<name>[^:\[\]]+))?:(?P<split>\w[^:\[\]]*(\[.*\])?)")


def hub_arguments(source: str) -> dict[str, str | None]:
    """`hub:NAME@REVISION:CONFIG:SPLIT` as arguments of `load_dataset`. Raises UserError for another form."""
    match = _HUB.fullmatch(source)
    if not match:
        raise UserError(f"{source!r} is not a hub data set: write hub:NAME:SPLIT or hub:NAME@REVISION:CONFIG:SPLIT")
    return match.groupdict()


def open_hub(source: str, wanted: Sequence[str], quoting: bool | None, label: str | None = None) -> Table:
    """A data set of the hub, or of a local folder, of which only these columns are read. UserError where it has none.

    `quoting`: are fields of csv and tsv quoted, as in `open_table`. `label`: the column of the labels, if it has some.
    """
    # Slow to import, and other tables are read without it.
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    arguments = hub_arguments(source)
    try:
        arguments["cache_dir"] = _cache_of(Path(str(arguments["path"])))
        given = {key: value for key, value in arguments.items() if key != "split"}
        builder = load_dataset_builder(**given)
        dataset = _loaded(builder, arguments, quoting)
        names = None
        if label is not None:
            names = names_of_ids(dataset.features.arrow_schema, label)
            _check_names_of_parts(source, str(arguments["path"]), builder, label, names)
    # RuntimeError: a folder with a script
    except (OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException) as error:
        raise UserError(f"{source}: the data set cannot be loaded: {one_line(error)}") from error
    columns = dataset.column_names
    read = dataset.select_columns([name for name in dict.fromkeys(wanted) if name in columns])
    rows = arrow_rows(read.with_format("arrow").iter(ARROW_BATCH_ROWS))
    return Table(columns, rows, names, schema=dataset.features.arrow_schema)


def _loaded(builder: "DatasetBuilder", arguments: Mapping[str, str | None], quoting: bool | None) -> "Dataset":
    """As `load_dataset`, but fields of csv and tsv stay as they are written: "01" would be 1 and "NA" would be missing.

    They do not where the data set itself says what its columns hold.
    """
    from datasets import Features, Value, load_dataset
    from datasets.packaged_modules.csv.csv import CsvConfig

    if not isinstance(builder.config, CsvConfig) or builder.info.features is not None:
        return load_dataset(**arguments)
    quoted = builder.config.sep != "\t" if quoting is None else quoting
    options = {"quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, "keep_default_na": False}
    columns = load_dataset(**arguments, **options).column_names
    return load_dataset(**arguments, **options, features=Features({name: Value("string") for name in columns}))


def _cache_of(folder: Path) -> str | None:
    """Where `datasets` keeps what it prepares of a local folder; None: where it keeps all else.

    It tells a changed file by its time of modification alone, which copies and archives may keep. Nobody can set the
    time of change.
    """
    from datasets import config

    files = sorted(file for file in folder.rglob("*") if file.is_file())
    states = [(file, file.stat()) for file in files]
    seen = [f"{file} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}" for file, found in states]
    return str(Path(config.HF_DATASETS_CACHE) / f"ltune-{sha256_of(*seen)[:16]}") if seen else None


def _check_names_of_parts(
    source: str, folder: str, builder: "DatasetBuilder", label: str, names: list[str] | None
) -> None:
    """UserError where a file of a folder has other names of ids: `datasets` takes those of the first file."""
    if not Path(folder).is_dir():
        return
    files = builder.config.data_files or {}
    for file in chain.from_iterable(files.values()):
        schema = _schema(file)
        if schema is not None and names_of_ids(schema, label) not in (names, None):
            raise UserError(
                f"{source}: {file} names the ids of {label!r} otherwise than the first file of the folder, whose names "
                "would be taken for all: give the file itself in place of hub:, as Parquet"
            )


def _schema(file: str) -> pa.Schema | None:
    """Of a file that may name ids; None for any other."""
    if file.endswith(".parquet"):
        return pq.read_schema(file)
    if not file.endswith(".arrow"):
        return None
    try:
        with pa.memory_map(file) as opened, pa.ipc.open_stream(opened) as stream:
            return stream.schema
    except pa.ArrowInvalid:  # Arrow's other form, which has its schemas at the end too
        with pa.memory_map(file) as opened, pa.ipc.open_file(opened) as whole:
            return whole.schema
