"""A folder of results in numbered parts, that several processes fill, and that may be gone on with after a kill.

job.json             what the parts are made of: all who write into the folder have the same
part-00000.parquet   and so on: each appears whole, by a rename
records/             a JSON file per finished part: its rows, its checksum, and that of the rows it was made from
manifest.json        all records, once every part is there: who finds it may read the parts
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from pipeline.core.artefact import Fingerprint, differences, sha256_of
from pipeline.core.checksums import sha256_of_file
from pipeline.core.errors import UserError
from pipeline.core.files import atomic_file, read_json, remove_temporaries, temporary_of, write_json
from pipeline.core.ownership import claim
from pipeline.core.settings import Settings

log = logging.getLogger(__name__)

JOB, RECORDS, MANIFEST = "job.json", "records", "manifest.json"
CHANGED = "the input has changed since; choose a new folder"


class Record(Settings):
    """What is known of a finished part."""

    file: str
    rows: int = Field(ge=1)
    faulty: int = Field(ge=0)
    """Of the rows."""
    sha256: str
    """Of the file."""
    made_from: str
    """Hash of the rows of the input."""
    job: str
    """Hash of the job."""


@dataclass(frozen=True)
class Parts:
    """The folder, as one of the processes that fill it sees it. Which process writes which part, they have agreed."""

    folder: Path
    job: Fingerprint
    suffix: str
    """Of a part's file, such as .parquet."""

    @classmethod
    def claimed(cls, folder: Path, job: Fingerprint, suffix: str) -> "Parts":
        """Makes the folder, or finds the same job in it. UserError where it is somebody else's, or of another job."""
        claim(folder, "predictions")
        if not (folder / JOB).exists():
            (folder / RECORDS).mkdir(exist_ok=True)
            write_json(folder / JOB, dict(job))
        found = read_json(folder / JOB)
        if changed := differences(found, job):
            raise UserError(f"'{folder}' holds parts of another job: {'; '.join(changed)}; choose a new folder")
        return cls(folder, job, suffix)

    def has(self, index: int, made_from: str) -> bool:
        """Is the part finished, as it was written? UserError where it was made from other rows, or by another job."""
        record = self._record(index)
        if record is None:
            return False
        if record.made_from != made_from:
            raise UserError(f"'{self.folder}': {record.file} was made from other rows: {CHANGED}")
        file = self.folder / record.file
        if file.is_file() and sha256_of_file(file) == record.sha256:
            return True
        log.warning("'%s' is not what was written: made again", file)
        return False

    def write(self, index: int, rows: int, faulty: int, made_from: str, write: Callable[[Path], None]) -> None:
        """`write` writes the part into the file that it is given. The part and then its record appear, each whole."""
        file = self.folder / f"part-{index:05d}{self.suffix}"
        with atomic_file(file) as temporary:
            write(temporary)
            digest = sha256_of_file(temporary)
        record = Record(
            file=file.name, rows=rows, faulty=faulty, sha256=digest, made_from=made_from, job=self._job_hash
        )
        write_json(self._record_file(index), record.model_dump())

    def finish(self, count: int) -> bool:
        """Writes the manifest, if all `count` parts are there, whoever wrote them; says whether they are.

        UserError where there are more.
        """
        if self._record_file(count).exists():
            raise UserError(f"'{self.folder}' has more parts than the input has rows for: {CHANGED}")
        records = []
        for index in range(count):
            record = self._record(index)
            if record is None or not (self.folder / record.file).is_file():
                return False
            records.append(record)
        for folder in (self.folder, self.folder / RECORDS):  # what killed processes left
            names = {temporary_of(entry.name) for entry in folder.iterdir()} - {None}
            remove_temporaries(folder, {str(name) for name in names if str(name) != MANIFEST})
        write_json(self.folder / MANIFEST, self._manifest(records))
        return True

    def _manifest(self, records: list[Record]) -> dict[str, Any]:
        return {
            "job": dict(self.job),
            "rows": sum(record.rows for record in records),
            "faulty": sum(record.faulty for record in records),
            "parts": [record.model_dump(exclude={"job"}) for record in records],
        }

    @property
    def _job_hash(self) -> str:
        return sha256_of(*(text for item in sorted(self.job.items()) for text in item))

    def _record_file(self, index: int) -> Path:
        return self.folder / RECORDS / f"part-{index:05d}.json"

    def _record(self, index: int) -> Record | None:
        """UserError where it is of another job: two that started at once in a new folder."""
        file = self._record_file(index)
        if not file.exists():
            return None
        try:
            record = Record.model_validate(read_json(file))
        except ValidationError as error:
            raise UserError(f"'{file}' is damaged: delete it, and the part is made again") from error
        if record.job != self._job_hash:
            raise UserError(f"'{file}' is of another job: choose a new folder for one of the two")
        return record
