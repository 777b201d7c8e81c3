"""Layouts by name: where weights and rows live."""

from __future__ import annotations

from research.core.layout import Layout


def single() -> Layout:
    """Put everything on one device."""
    return Layout()


def data(n: int = -1) -> Layout:
    """Split rows over `n` devices (-1: all there are); every device holds all weights."""
    return Layout(axes=(("data", n),))


def fsdp(n: int = -1, *, data: int = 1) -> Layout:
    """Split weights and rows over `n` devices (-1: all there are), in `data` such groups.

    A weight is split over its residual width D. The embedding is split over V instead (an embedding
    split over D is gathered whole at every look-up), and so are, over their other side, the
    factors of an adapter that have no D.
    """
    split = ("fsdp",)
    return Layout(
        axes=(("data", data), ("fsdp", n)),
        weights=(("D", split),),
        activations=(("B", ("data", "fsdp")),),
        overrides=(
            ("embed_V_D", (("V", split), ("D", ()))),
            ("b_R_KGH", (("H", split),)),
            ("b_R_KH", (("H", split),)),
            ("b_R_F", (("F", split),)),
            ("b_R_V", (("V", split),)),
            ("a_KGH_R", (("H", split),)),
            ("a_F_R", (("F", split),)),
            ("a_V_R", (("V", split),)),
        ),
    )
