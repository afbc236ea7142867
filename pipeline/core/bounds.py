"""How much of what a stranger may send is taken: every bound with its reason, and the readers that keep to them.

What lies beyond a bound is refused in one line, before memory or time is spent on it. Two more stand beside what they
bound: `backbone.weights` (a header) and `data.checks` (how many labels).
"""

import errno
import os
import stat
from pathlib import Path

LONGEST_MESSAGE = 500
"""Characters of an error: a screen of text. Longer ones are cut in the middle; --debug shows all."""
LARGEST_CONFIG = 2**18
"""Bytes of a YAML file: ten thousand labels with their names. The parser needs some twenty seconds for as much."""
MOST_YAML_VALUES = 100_000
"""Values of a YAML text when every alias is written out: a few lines of aliases of aliases make a billion."""
MOST_DIGITS = 300
"""Of a number in a config: more than any float has. Python refuses to read or to write integers of 4,300."""
LARGEST_JSON = 2**28
"""Bytes of a JSON file beside weights or in a run: the largest published tokenizer.json has 33 MB."""
LONGEST_TEMPLATE = 1000
"""Characters of labels.template, which is written out once per label."""
MOST_HYPOTHESES = 100
"""Of one label, each of which is read; tables of them are as wide as the label with the most."""
LONGEST_LABEL = 1000
"""Characters of a label's name: a longer one is a text, so data.label names the wrong column."""
LONGEST_LINE_BYTES = 16 * 2**20
"""Longest line, quoted field, JSON object or Parquet row; more is a file of another kind or a quote never closed."""
MOST_COLUMNS = 10_000
"""Of a table: every row is a dictionary of them. More come from a wrong separator."""
MOST_TOKENS = 2**20
"""Of a text or an injection: no backbone has as many positions, and each costs memory in every layer."""
MOST_STEPS = 10**9
"""Optimizer steps, epochs, and steps between two events: years of training."""
MOST_SESSIONS = 100
"""Of self-training, each of which is a training of its own."""
MOST_REWORDINGS = 100
"""Of an evaluation, which scores all its texts anew for each."""
MOST_TEXTS = 10**6
"""Of a batch, on one rank."""
MOST_ROWS = 10**12
"""Rows that a limit may name; what a file has not got costs nothing."""
WIDEST = 2**16
"""Of a rank, a bottleneck or an encoder: wider than any backbone."""
MOST_PROCESSES = 1024
"""That tokenize on one machine: each is a copy of this program."""
LONGEST_WAIT = 31_536_000
"""Seconds: a year. Waits of more overflow the clocks of some libraries."""
MOST_LAYERS = 10_000
"""Of a backbone: they are built one by one, before the weights are compared with them."""
MOST_POSITIONS = 2**27
"""Of a backbone: some families count them up in a buffer."""
MOST_SQUARE_POSITIONS = 2**15
"""Of a GPT-2, which has a mask of their square: 1 GB."""
MOST_WIDTH = 2**30
"""Any other size in a config.json, such as the vocabulary's: it takes no memory, but two are multiplied."""
MOST_TRAINED = 10**10
"""Trained parameters of a method outside the backbone: 160 GB with their gradients and Adam's state."""
MOST_STATES_GIB = 2**20
"""Of text states: a petabyte, more than a disk holds."""
MOST_TRACED_STEPS = 100
"""A step of a large model has some 10,000 events, which the trace keeps in memory."""
MOST_TOKENS_OF_PASS = 10**9
"""Of all texts of a forward pass: their hidden states alone take terabytes."""
MOST_CELLS = 100_000
"""Runs of a comparison: each is checked before the first one starts, and each needs a folder."""
MOST_SHARES = 10_000
"""That a comparison is divided into, for as many jobs."""
MOST_RANKS = 1_000_000
"""Of a run: more than any cluster has GPUs."""
LARGEST_PARQUET_READ = 2**28
"""Bytes that a batch of Parquet rows may become if every cell were as large as its column chunk: fewer rows then."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class NotReadError(OSError):
    """A file that is left alone, for what it is or how large it is."""

    def __str__(self) -> str:
        return self.strerror or ""


def check_regular(path: Path, most_bytes: int | None = None) -> None:
    """Raises OSError where the path is not a regular file, or has more than `most_bytes`.

    A pipe without a writer is waited for without end, and a device may never end.
    """
    try:
        found = os.stat(path)
    except ValueError as error:  # a null character in its name
        raise NotReadError(errno.EINVAL, str(error)) from None
    if kind := _KINDS.get(stat.S_IFMT(found.st_mode)):
        raise NotReadError(errno.EINVAL, f"it is {kind}, not a file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise NotReadError(errno.EFBIG, f"it has {found.st_size:,} bytes, at most {most_bytes:,} are read")


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a regular file of at most `most_bytes`. Raises OSError and UnicodeDecodeError."""
    check_regular(path, most_bytes)
    return path.read_text(encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Raises OSError, naming the file, where something in a folder is neither a regular file nor a folder.

    For folders whose files a library opens.
    """
    for entry in folder.iterdir():
        # A link that leads nowhere is somebody's missing file: who needs it says so.
        if entry.exists() and not entry.is_dir():
            try:
                check_regular(entry, LARGEST_JSON if entry.suffix == ".json" else None)
            except NotReadError as error:
                raise NotReadError(error.errno, f"{error} ({entry.name})") from None


def abridged(message: str, most: int = LONGEST_MESSAGE) -> str:
    """A message of at most about `most` characters: of a longer one the middle is left out, which is said."""
    if len(message) <= most:
        return message
    kept = (most - 50) // 2
    left_out = len(message) - 2 * kept
    return f"{message[:kept]} [... {left_out:,} characters left out ...] {message[-kept:]}"
