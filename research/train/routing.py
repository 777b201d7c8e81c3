"""What the routers of a cycle did, layer by layer, as numbers for the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from research.core.records import RouterStatistics
from research.models.architecture import Architecture
from research.models.moe.layers import in_order


def routing(arch: Architecture, router: Mapping[str, RouterStatistics] | None) -> dict[str, Any]:
    """Give lists over the layers with experts, first to last; nothing for a dense model.

    `router_load`: the share of its assignments that each expert of a layer takes (sums to 1);
    `router_entropy_nats`: the mean entropy of the router's distribution;
    `router_dropped_fraction`: the share of assignments that the dispatch dropped.
    """
    if not router:
        return {}
    seen = in_order(arch, router)

    def added(values: Any) -> np.ndarray:
        return np.asarray(values, np.float64)[:, 0]

    load_LE, tokens_L = added(seen.load_BE), np.maximum(added(seen.tokens_B), 1)
    assigned_L = np.maximum(load_LE.sum(axis=1), 1)
    values = {
        "router_load": load_LE / assigned_L[:, None],
        "router_entropy_nats": added(seen.entropy_B) / tokens_L,
        "router_dropped_fraction": added(seen.dropped_B) / assigned_L,
    }
    return {name: np.round(value, 6).tolist() for name, value in values.items()}
