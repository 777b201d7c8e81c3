"""Which examples share a row: first fit in the given order, by grain's packer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset


class _Lengths:
    """Grain's view of some examples: their lengths, without their tokens."""

    def __init__(self, ids: Sequence[int], lengths_X: np.ndarray):
        self.ids, self.lengths_X = ids, lengths_X

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        length = int(self.lengths_X[self.ids[index]])
        return {"tokens": np.zeros(length, np.int8), "place": np.int32(index)}


def pack(
    ids: Sequence[int],
    lengths_X: np.ndarray,
    num_rows: int,
    row_tokens: int,
    max_segments: int,
) -> tuple[list[list[int]], list[int]]:
    """Put examples into `num_rows` rows, each into the first row that has room for it.

    The first that finds no room closes the batch: it and all after it are the leftovers, so that
    what is packed is a prefix of what was asked for and no example overtakes another.

    Returns:
      Rows of pool indices (empty ones at the end where the examples do not fill them), and the
      leftovers in order.

    Raises:
      ValueError: an example is longer than a row.

    Law: rows and leftovers hold each id exactly as often as `ids`; equal arguments, equal result.
    """
    ids = [int(x) for x in ids]
    for x in ids:
        if lengths_X[x] > row_tokens:
            raise ValueError(
                f"example {x} has {lengths_X[x]} tokens and a row has {row_tokens}; open the pool "
                "with that row_tokens, so that it is cut or dropped"
            )
    if not ids:
        return [[] for _ in range(num_rows)], []
    elements = grain.MapDataset.source(_Lengths(ids, lengths_X)).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    packed = FirstFitPackIterDataset(
        elements,
        length_struct={"tokens": row_tokens},
        num_packing_bins=num_rows,
        shuffle_bins=False,
        meta_features=("place",),
        max_sequences_per_bin=max_segments,
    )
    rows = [[int(p) for p in row["place"]] for row, _ in zip(packed, range(num_rows), strict=False)]
    num_placed = sum(len(row) for row in rows)
    rows += [[] for _ in range(num_rows - len(rows))]
    return [[ids[place] for place in row] for row in rows], ids[num_placed:]
