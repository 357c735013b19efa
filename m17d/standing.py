"""Standing: which cells of a column count, and which of them are whole or suspect. This module must never look into a state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Standing:
    """Cells of one column of a range, bool [n, minutes]: which count at all, which of them are whole or suspect."""

    counts: np.ndarray
    whole: np.ndarray
    suspect: np.ndarray
