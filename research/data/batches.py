"""Examples to arrays: packed rows, or one example a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from research.core.records import Batch
from research.data.examples import Example


def pack_batch(
    rows: Sequence[Sequence[tuple[int, Example]]], row_tokens: int, max_segments: int
) -> Batch:
    """Lay rows of (pool index, example) out side by side.

    A target is the next token inside the same example; it has weight 1 where that token is trained.
    Positions restart with each example; padding is on the right, in segment 0.

    Shapes: B = len(rows), T = row_tokens, Z = max_segments.

    Raises:
      ValueError: a row holds more tokens or examples than it has room for.
    """
    shape = (len(rows), row_tokens)
    tokens_BT, targets_BT, positions_BT, segments_BT = (np.zeros(shape, np.int32) for _ in range(4))
    weights_BT = np.zeros(shape, np.float32)
    ids_BZ = np.full((len(rows), max_segments), -1, np.int32)
    for b, row in enumerate(rows):
        num_tokens = sum(len(example.tokens) for _, example in row)
        if num_tokens > row_tokens or len(row) > max_segments:
            raise ValueError(
                f"row {b} holds {len(row)} examples of {num_tokens} tokens in all; there is room "
                f"for {max_segments} of {row_tokens}. Pack with the same numbers"
            )
        start = 0
        for z, (x, example) in enumerate(row):
            end = start + len(example.tokens)
            tokens_BT[b, start:end] = example.tokens
            targets_BT[b, start : end - 1] = example.tokens[1:]
            weights_BT[b, start : end - 1] = example.trained[1:]
            positions_BT[b, start:end] = np.arange(end - start)
            segments_BT[b, start:end] = z + 1
            ids_BZ[b, z] = x
            start = end
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=targets_BT,
        weights_BT=weights_BT,
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        ids_BZ=ids_BZ,
    )


def single_batch(
    examples: Sequence[Example], ids: Sequence[int], num_rows: int, row_tokens: int
) -> Batch:
    """Lay one example out a row (Z = 1); rows beyond the examples are padding with id -1.

    Raises:
      ValueError: there are more examples than rows, or one is longer than a row.
    """
    if len(examples) > num_rows:
        raise ValueError(f"{len(examples)} examples do not fit {num_rows} rows of one each")
    rows = [[(int(x), example)] for x, example in zip(ids, examples, strict=True)]
    rows += [[] for _ in range(num_rows - len(rows))]
    return pack_batch(rows, row_tokens, 1)


def single_rows(
    examples: Sequence[Example], ids: Sequence[int], row_tokens: int, part: slice
) -> Batch:
    """Lay out a range of a batch's rows, one example a row; rows beyond the examples are padding.

    Shapes: B = part.stop - part.start.
    """
    return single_batch(examples[part], ids[part], part.stop - part.start, row_tokens)
