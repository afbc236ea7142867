"""Fetches a public data set: published files become three tables, which a recipe names by one key."""

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path

from pipeline.core.errors import UserError, nearest
from pipeline.core.files import atomic_file, read_json, write_json, write_text
from pipeline.core.output import say
from pipeline.data.config import public_folder
from pipeline.data.public_sets import HOST, PUBLIC_SETS, PublicSet, Published
from pipeline.data.published import Row, read_published, split_rows

log = logging.getLogger(__name__)

PINS = "SHA256.json"
LARGEST = 200 << 20
"""Bytes of a published file; the largest has some ten million."""
TIMEOUT_SECONDS = 60


def fetch_data(name: str, folder: str | None = None, *, mirror: str = HOST) -> Path:
    """Writes train.tsv, validation.tsv and test.tsv of a public set to its folder; prints licence and citation.

    `folder`: that of all sets; None: $LTUNE_DATA, else public_data. `mirror`: what has the files in the place of HOST.
    Published files are kept in raw/, and taken from there. Their checksums are pinned at the first fetch.
    Raises UserError for an unknown name, a file that cannot be fetched (it says what to download, and where to), and
    one that is not what was fetched before.
    """
    if name not in PUBLIC_SETS:
        raise UserError(f"there is no public set {name!r}{nearest(name, PUBLIC_SETS)}: {', '.join(PUBLIC_SETS)}")
    given, place = PUBLIC_SETS[name], Path(folder or public_folder()) / name
    missing = [source for source in given.files if not _raw(place, source).is_file()]
    for source in missing:
        try:
            content = _download(f"{mirror.rstrip('/')}/{source.path}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreached(place, missing[missing.index(source) :], error) from error
        _raw(place, source).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(_raw(place, source)) as file:
            file.write_bytes(content)
    contents = [_raw(place, source).read_bytes() for source in given.files]
    _check_pins(place, given, contents)
    files = [
        read_published(content, source.form, str(_raw(place, source)))
        for source, content in zip(given.files, contents, strict=True)
    ]
    splits = split_rows(given, files)
    for split, rows in splits.items():
        _write(place / f"{split}.tsv", rows, pairs=given.has_pairs)
    if unlike := _unlike(given, splits):
        log.warning("fetch-data %s: %s: look at it before you compare with docs/results.md", name, unlike)
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
    say(f"{given.about}\n{counts} rows in {place}\nlicence: {given.licence}\ncite: {given.citation}")
    say(f"in a config: data: {{public: {name}}}")
    return place


def _raw(place: Path, source: Published) -> Path:
    return place / "raw" / source.place


def _download(address: str) -> bytes:
    log.info("fetch-data: %s", address)
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
        content: bytes = answer.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 20} MiB")
    return content


def _unreached(place: Path, missing: list[Published], error: Exception) -> UserError:
    status = getattr(error, "code", None)  # of an answer; else nobody answered
    reason = error if status else getattr(error, "reason", error)
    by_repository: dict[str, list[str]] = {}
    for source in missing:
        by_repository.setdefault(source.repository, []).append(source.place)
    wanted = "; ".join(f"{HOST}/{where}/ {', '.join(paths)}" for where, paths in by_repository.items())
    below = f"put each below '{place / 'raw'}', under its path"
    return UserError(f"fetch-data: not fetched ({reason}): elsewhere, download {wanted}; {below}")


def _check_pins(place: Path, given: PublicSet, contents: list[bytes]) -> None:
    """Keeps the checksums of the first fetch, which was at a fixed commit; refuses others later."""
    found = {
        source.path: hashlib.sha256(content).hexdigest() for source, content in zip(given.files, contents, strict=True)
    }
    if (place / PINS).is_file():
        pinned = read_json(place / PINS)
        for source in given.files:
            if pinned.get(source.path) != found[source.path]:
                raise UserError(
                    f"'{_raw(place, source)}' is not the file that was fetched first ({PINS}): remove '{place}' to "
                    "fetch all anew"
                )
    else:
        write_json(place / PINS, found)


def _unlike(given: PublicSet, splits: dict[str, list[Row]]) -> str:
    """How the numbers of rows differ from those of the tables in docs; a cut is as near as whole groups allow."""
    train, validation, test = map(len, splits.values())
    found = {"training and validation": train + validation, "test": test}
    wanted = {"training and validation": sum(given.rows[:2]), "test": given.rows[2]}
    return "; ".join(
        f"{found[part]:,} {part} rows, expected {wanted[part]:,}" for part in found if found[part] != wanted[part]
    )


def _write(file: Path, rows: list[Row], *, pairs: bool) -> None:
    header = ("text", "text_pair", "label") if pairs else ("text", "label")
    write_text(file, "".join("\t".join(row) + "\n" for row in (header, *rows)))
