"""Which dispatch, where the user has not chosen one: by the layout."""

from __future__ import annotations

from research.core.layout import Placement
from research.models.moe.dispatch import Dispatch, expert_axes
from research.models.moe.dropless import Dropless
from research.models.moe.expert_parallel import ExpertParallel


def dispatch_for(place: Placement) -> Dispatch:
    """Give the dispatch that drops nothing: where experts are split, tokens travel to them."""
    return ExpertParallel() if expert_axes(place) else Dropless()
