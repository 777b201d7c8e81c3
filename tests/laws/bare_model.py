"""A model that is only its parameters, and a folder of it: for laws of layouts without a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.core.layout import Placement
from research.core.tree import unflatten
from research.huggingface.family import Family, Names
from research.huggingface.folder import Folder, weight_files
from research.huggingface.stored import stored_tensors
from research.models.architecture import Stack


@dataclasses.dataclass(frozen=True)
class BareArchitecture:
    """Layers that are one stack."""

    num_layers: int
    tied_head: bool = False

    def stages(self) -> tuple[tuple[Stack, ...], ...]:
        return ((Stack(first=0, stride=1, count=self.num_layers),),)


@dataclasses.dataclass(frozen=True)
class BareModel:
    """Parameters of given shapes: "layers/ffw/up_D_F" -> (6, 10), without its L axis."""

    num_layers: int
    shapes: Mapping[str, tuple[int, ...]]
    place: Placement
    dtype: str = "float32"

    @property
    def arch(self) -> Any:
        return BareArchitecture(self.num_layers)

    def abstract(self) -> dict[str, Any]:
        return unflatten(
            {
                self.path(name): jax.ShapeDtypeStruct(self.stacked(name, shape), self.dtype)
                for name, shape in self.shapes.items()
            }
        )

    def path(self, name: str) -> tuple[str, ...]:
        head, *rest = name.split("/")
        return ("layers", "0", *rest) if head == "layers" else (head, *rest)

    def stacked(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.num_layers, *shape) if name.startswith("layers/") else shape

    def random(self, seed: int = 3) -> dict[str, Any]:
        """Draw parameters."""
        random = np.random.RandomState(seed)
        return jax.tree.map(
            lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype), self.abstract()
        )


def bare_family(names: Names, **fields: Any) -> Family:
    """A family that is only its tables."""

    def none(_: Any) -> Any:
        raise AssertionError("a bare family has no config")

    return Family(
        model_type="bare", class_name="Bare", read=none, write=none, names=names, **fields
    )


def bare_folder(path: Path, model: BareModel, family: Family, **config: Any) -> Folder:
    """Open a folder without a `config.json`."""
    return Folder(
        path=path,
        config=config,
        family=family,
        architecture=model.arch,
        tensors=stored_tensors(weight_files(path), config),
    )
