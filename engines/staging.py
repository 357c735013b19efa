"""
Staging: the cells of a batch, appended to a file as they are made, so that a batch costs the memory of one chunk.

The file is a plain ``.npy`` of one structured dtype that the daemon maps; its header gets the count when it is finished.
This module must never keep cells in memory, nor know what a cell says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from engines.contract import RECORD_OFFSET
from ledger.columns import PayloadKind
from ledger.records import RECORD_DTYPE

_HEADER_BYTES: Final = 4096
_MAGIC: Final = b"\x93NUMPY\x01\x00"


def cell_dtype(kind: PayloadKind) -> np.dtype[Any]:
    """dtype of staged cells of a kind, a multiple of 8 bytes; see :class:`engines.contract.CellBlock`."""
    record = RECORD_DTYPE[kind]
    return np.dtype(
        {
            "names": ["symbol", "minute", "inputs", "flags", "record"],
            "formats": ["<u2", "<u2", "<u4", "u1", record],
            "offsets": [0, 2, 4, 8, RECORD_OFFSET],
            "itemsize": RECORD_OFFSET + record.itemsize,
        }
    )


class StagedCells:
    """Cells of one kind in a file. Raises OSError where the file system refuses."""

    def __init__(self, path: Path, kind: PayloadKind) -> None:
        self.path = path
        self.count = 0
        self.dtype = cell_dtype(kind)
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER_BYTES))

    def append(self, cells: np.ndarray) -> int:
        """Append cells and return the position of the first."""
        assert cells.dtype == self.dtype, "staging: cells of another kind"
        first = self.count
        self._file.write(np.ascontiguousarray(cells).view(np.uint8).data)
        self.count += len(cells)
        return first

    def finish(self) -> np.memmap[Any, Any] | None:
        """Write the header and give the cells, writable, for what is only known at the end; None where there are none."""
        shape = f"{{'descr': {self.dtype.descr!r}, 'fortran_order': False, 'shape': ({self.count},), }}"
        header = shape.encode().ljust(_HEADER_BYTES - len(_MAGIC) - 3) + b"\n"
        self._file.seek(0)
        self._file.write(_MAGIC + (_HEADER_BYTES - len(_MAGIC) - 2).to_bytes(2, "little") + header)
        self._file.close()
        if not self.count:
            return None
        return np.memmap(self.path, dtype=self.dtype, mode="r+", offset=_HEADER_BYTES, shape=(self.count,))

    def abort(self) -> None:
        """Throw the file away."""
        self._file.close()
        self.path.unlink(missing_ok=True)
