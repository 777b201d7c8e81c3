"""Parameter trees as tables from path to leaf, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]


def flatten(tree: Any) -> dict[Path, Any]:
    """List the leaves of nested dictionaries by path; anything but a dictionary is a leaf."""
    return dict(flatten_dict(tree))


def unflatten(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Nest what `flatten` listed."""
    return unflatten_dict(dict(leaves))
