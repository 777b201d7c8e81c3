"""Which parameters a tuning means: names, ends of paths, or all linear layers."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterable, Sequence

import jax

from research.core.axes import axes_of
from research.core.tree import Path

ALL_LINEAR = "all_linear"


def select(paths: Iterable[Path], targets: Sequence[str], what: str) -> list[Path]:
    """List the kernels that `targets` mean, in the order of `paths`.

    A target is a parameter's name (`query_D_KGH`), the end of its path (`attention.query_D_KGH`,
    `layers.0.ffw.up_D_F`), or "all_linear": every kernel of the layers but a router, which leaves
    the embedding and the head out too.

    Raises:
      ValueError: a target means no kernel; the error lists the kernels there are.
    """
    kernels = [path for path in paths if (axes := axes_of(path[-1])) and axes.is_kernel]
    return named(kernels, targets, what)


def named(paths: Iterable[Path], targets: Sequence[str], what: str) -> list[Path]:
    """List the parameters of any kind that `targets` mean, in the order of `paths`.

    Raises:
      ValueError: a target means none; the error lists those there are.
    """
    paths = list(paths)
    unmatched = [t for t in targets if not any(means(t, path) for path in paths)]
    if unmatched:
        names = sorted({path[-1] for path in paths})
        hints = [near for t in unmatched for near in difflib.get_close_matches(t, names, n=1)]
        hint = f" Did you mean {', '.join(hints)}?" if hints else ""
        raise ValueError(
            f"{what}={unmatched} matches no parameter that it may name.{hint} Choose from {names}, "
            f"the end of a path such as {'.'.join(paths[0]) if paths else 'ffw.up_D_F'!r}, or "
            f"{ALL_LINEAR!r}"
        )
    return [path for path in paths if any(means(target, path) for target in targets)]


def means(target: str, path: Path) -> bool:
    """Whether `target` means the kernel at `path`."""
    if target == ALL_LINEAR:
        return path[0] == "layers" and not path[-1].startswith("router")
    return ".".join(("", *path)).endswith("." + target)


def key_of(key: jax.Array, path: Path) -> jax.Array:
    """Derive the random key of one parameter from its path, so that no order matters."""
    return jax.random.fold_in(key, zlib.crc32(".".join(path).encode()))
