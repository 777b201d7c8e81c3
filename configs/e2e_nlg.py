"""Restaurants' data sheets and texts about them (E2E NLG), cut into a pool and a test part.

`sheets` takes the folder of the assets, `experiments/assets`, and reads nothing.
"""

from __future__ import annotations

from research.data.pool import Data
from research.data.selection import Columns, Deduplicated, Split
from research.data.sources import Jsonl

POOL, TEST = (0.0, 0.8), (0.8, 1.0)


def sheets(assets: str, fraction: tuple[float, float], *, rows: int) -> Data:
    """Give the rows of some of the data sheets, one row a sheet, `rows` in a batch."""
    source = Jsonl(path=f"{assets}/e2e_nlg/valid.jsonl.gz")
    distinct = Deduplicated(source=source, by="mr")
    part = Split(source=distinct, by="mr", fraction=fraction, salt="quickstart")
    columns = Columns(source=part, prompt="{mr} =>", completion=" {text}")
    return Data(sources=(columns,), rows=rows, row_tokens=288, pack=False)
