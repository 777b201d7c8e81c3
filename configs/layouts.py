"""Layouts by name: where weights and rows live.

-1 is "the devices that are there". Mesh axes, slowest network first: replica (slices joined by a
slower network), data, fsdp, expert, context, tensor.
"""

from __future__ import annotations

from research.core.layout import Layout

SPARE = (
    "DFHVUWQIJ"  # letters of a kernel that take the axes which are left, the first that is there
)


def single() -> Layout:
    """Put everything on one device."""
    return Layout()


def data(n: int = -1) -> Layout:
    """Split rows over `n` devices; every device holds all weights."""
    return Layout(axes=(("data", n),))


def fsdp(n: int = -1, *, data: int = 1) -> Layout:
    """Split weights and rows over `n` devices, in `data` such groups."""
    return _layout(data=data, fsdp=n)


def fsdp_tensor(tensor: int, *, fsdp: int = -1, data: int = 1, context: int = 1) -> Layout:
    """Split heads, feed-forward and vocabulary over `tensor` neighbours too, tokens of a row over
    `context` of them."""
    return _layout(data=data, fsdp=fsdp, context=context, tensor=tensor)


def context(n: int, *, fsdp: int = -1, data: int = 1) -> Layout:
    """Split the tokens of each row over `n` devices, rows over the others, weights over all.

    Keys and values are gathered for attention; everything else is a token's own.
    """
    return _layout(data=data, fsdp=fsdp, context=n)


def expert(n: int, *, fsdp: int = -1, data: int = 1, context: int = 1, tensor: int = 1) -> Layout:
    """Split experts over `n` devices, to which tokens travel; everything else as `fsdp` does."""
    return _layout(data=data, fsdp=fsdp, expert=n, context=context, tensor=tensor)


def pod(
    slices: int, *, fsdp: int = -1, expert: int = 1, context: int = 1, tensor: int = 1
) -> Layout:
    """Run on several slices: each holds all weights, gradients alone cross the slower network."""
    return _layout(replica=slices, fsdp=fsdp, expert=expert, context=context, tensor=tensor)


def _layout(**sizes: int) -> Layout:
    """Say which letters each mesh axis splits; axes of size 1 are left out.

    The embedding is split over V instead of D: an embedding split over D is gathered whole at every
    look-up.
    """
    axes = tuple((name, n) for name, n in sizes.items() if n != 1 or name == "fsdp")
    there = {name for name, _ in axes}

    def rules(*wanted: tuple[str, tuple[str, ...]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        held = ((letter, tuple(a for a in names if a in there)) for letter, names in wanted)
        return tuple((letter, names) for letter, names in held if names)

    tensor, shared = ("tensor",), ("fsdp", "expert", "context", "tensor")
    return Layout(
        axes=axes,
        weights=rules(
            ("E", ("expert",)), ("D", ("fsdp",)), ("K", tensor), ("F", tensor), ("V", tensor)
        ),
        activations=rules(
            ("B", ("replica", "data", "fsdp", "expert")),
            ("T", ("context",)),
            ("K", tensor),
            ("F", tensor),
        ),
        spare=rules(*((letter, shared) for letter in SPARE)),
        overrides=(("embed_V_D", (*rules(("V", ("fsdp", "context", "tensor"))), ("D", ()))),),
    )
