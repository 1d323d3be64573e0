"""Rows of one shape on disk: crops and features of data sets that are larger than memory.

They lie in a temporary file, in the folder that `TMPDIR` names, which is gone when nothing
refers to it any longer. Small data never leaves the system's cache of files, so a batch costs
about what copying it in memory does.
"""

from __future__ import annotations

import tempfile
from threading import Lock
from typing import Any

import numpy as np


class _Store:
    """The open file; the offset of a file is shared, so reading takes turns."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="fmd_tf-", buffering=0)  # noqa: SIM115
        self.lock = Lock()

    def __del__(self) -> None:
        self.file.close()


class RowFile:
    """An array that grows by rows and is read by rows: `rows[3]`, `rows[2:9]`, `rows[indices]`.

    Args:
        row_shape: Shape of a row.
        dtype: Type of the values.
    """

    def __init__(self, row_shape: tuple[int, ...], dtype: Any):
        self.dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._store = _Store()
        self._indices = np.zeros(0, np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and the shape of a row."""
        return (len(self._indices), *self._row_shape)

    def __len__(self) -> int:
        return len(self._indices)

    def append(self, rows: np.ndarray) -> None:
        """Write rows, [num_rows, *row_shape], after the last one.

        Raises:
            ValueError: They are of another shape or type.
            OSError: The disk is full.
        """
        if rows.shape[1:] != self._row_shape or rows.dtype != self.dtype:
            raise ValueError(
                f"expected rows of {self.dtype} {self._row_shape}, got {rows.dtype} "
                f"{rows.shape[1:]}"
            )
        with self._store.lock:
            start = self._store.file.seek(0, 2) // self._row_bytes
            data = np.ascontiguousarray(rows).data.cast("B") if rows.size else b""
            while data:
                data = data[self._store.file.write(data) :]
        self._indices = np.append(self._indices, np.arange(start, start + len(rows)))

    def where(self, keep: np.ndarray) -> RowFile:
        """Return the rows for which `keep`, bool [num_rows], is true, on the same file."""
        kept = object.__new__(RowFile)
        kept.__dict__ |= self.__dict__
        kept._indices = self._indices[keep]
        return kept

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read one row, or those of a slice or of an array of indices, into memory."""
        wanted = self._indices[key]
        rows = np.empty((wanted.size, *self._row_shape), self.dtype)
        flat = rows.reshape(wanted.size, int(np.prod(self._row_shape)))
        with self._store.lock:
            for row, index in zip(flat, wanted.ravel(), strict=True):
                self._store.file.seek(int(index) * self._row_bytes)
                self._read(row.data.cast("B"))
        return rows.reshape(*wanted.shape, *self._row_shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read everything."""
        return self[:].astype(dtype or self.dtype, copy=False)

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self._row_shape))

    def _read(self, target: memoryview) -> None:
        """Fill a row; a system may return less than was asked for."""
        while target:
            count = self._store.file.readinto(target)
            if not count:
                raise OSError("a temporary file of crops ends too early")
            target = target[count:]


Rows = np.ndarray | RowFile
"""Crops or features by face, in memory or on disk."""
