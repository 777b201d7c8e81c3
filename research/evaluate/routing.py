"""Where a mixture of experts sends its tokens, and how far that is from where it started."""

from __future__ import annotations

from research.core.parts import part, require
from research.core.records import Total
from research.data.pool import Data, Pool
from research.evaluate.evaluate import Item, checks_of
from research.evaluate.subject import Subject

AGREEMENT = "router_agreement"


@part
class RouterDrift:
    """The share of assignments that the starting weights make too, for the same token.

    router_agreement = sum over tokens and layers of |experts now and then| / (experts_per_token x
    tokens x layers), and the same of every layer with experts. An item's row also keeps how many
    assignments each expert of each layer got ("load") and the fields of `slice_by` ("slices"), from
    which a report tells how far experts specialise. All tokens of an item count, prompts too;
    padding does not.

    Law: 1 before the first update.
    """

    data: Data
    name: str = "routing"
    slice_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self, *checks_of(self))

    def measure(self, subject: Subject, pool: Pool) -> list[Item]:
        """Measure each item.

        Raises:
          ValueError: the model is dense, or is not being trained.
        """
        routes = subject.routes(pool.examples, self.data.rows)
        made_XL = routes.load_XLE.sum(axis=2)
        items: list[Item] = []
        for x, example in enumerate(pool.examples):
            kept_L, made_L = routes.kept_XL[x].tolist(), made_XL[x].tolist()
            by_layer = {
                f"{AGREEMENT}_layer_{layer}": Total(sum=kept, count=made)
                for layer, kept, made in zip(routes.layers, kept_L, made_L, strict=True)
            }
            items.append(
                {
                    AGREEMENT: Total(sum=sum(kept_L), count=sum(made_L)),
                    **by_layer,
                    "load": routes.load_XLE[x].tolist(),
                    "slices": {name: str(example.row.get(name)) for name in self.slice_by},
                }
            )
        return items
