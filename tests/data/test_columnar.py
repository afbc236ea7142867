"""One cell larger than a row may be, in a batch that is small as a whole.

covers data/columnar
"""

import pyarrow as pa
import pytest

from pipeline.core.bounds import LONGEST_LINE_BYTES
from pipeline.data.columnar import arrow_rows


def batch(cells: list[str], repeated: bool) -> pa.RecordBatch:
    column = pa.array(cells)
    return pa.record_batch({"text": column.dictionary_encode() if repeated else column})


@pytest.mark.parametrize("repeated", [False, True])
def test_a_row_over_the_bound_is_a_fault_and_its_neighbours_are_read(repeated: bool) -> None:
    rows = list(arrow_rows([batch(["a", "x" * (LONGEST_LINE_BYTES + 1), "b"], repeated)]))
    assert [row.values for row in rows] == [{"text": "a"}, {}, {"text": "b"}]
    assert [row.fault for row in rows] == [None, "this row is longer than 16 MiB", None]


@pytest.mark.parametrize("repeated", [False, True])
def test_a_row_of_the_bound_is_read(repeated: bool) -> None:
    longest = "x" * (LONGEST_LINE_BYTES - 1024)
    rows = list(arrow_rows([batch([longest, "b"], repeated)]))
    assert [row.values for row in rows] == [{"text": longest}, {"text": "b"}] and not any(row.fault for row in rows)
