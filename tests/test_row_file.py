from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fmd_tf.row_file import RowFile

VALUES = np.arange(60, dtype=np.int32).reshape(10, 2, 3)


def _rows() -> RowFile:
    rows = RowFile((2, 3), np.int32)
    rows.append(VALUES[:4])
    rows.append(VALUES[:0])
    rows.append(VALUES[4:])
    return rows


@pytest.mark.parametrize(
    "key", [3, -1, slice(2, 7), slice(None), np.array([9, 0, 0]), np.zeros(0, int)], ids=str
)
def test_reads_as_an_array_does(key):
    rows = _rows()
    assert rows.shape == VALUES.shape
    np.testing.assert_array_equal(rows[key], VALUES[key])
    assert rows[key].dtype == np.int32


def test_a_selection_is_of_the_same_rows():
    keep = np.arange(10) % 3 == 0
    chosen = _rows().where(keep)
    np.testing.assert_array_equal(np.asarray(chosen), VALUES[keep])
    np.testing.assert_array_equal(
        chosen.where(np.array([True, False, False, True]))[:], VALUES[::9]
    )


def test_threads_read_what_they_ask_for():
    rows = _rows()
    with ThreadPoolExecutor(4) as pool:
        for index, row in enumerate(pool.map(lambda i: rows[i % 10], range(500))):
            np.testing.assert_array_equal(row, VALUES[index % 10])


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected rows of int32 \(2, 3\), got int32 \(3, 2\)"):
        _rows().append(VALUES.reshape(10, 3, 2))
