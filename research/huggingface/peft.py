"""LoRA adapters as folders that PEFT writes and reads."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from research.core.axes import declared
from research.core.tree import Path as TreePath
from research.core.tree import flatten, unflatten
from research.huggingface import peft_config
from research.huggingface.families.known import family_for
from research.huggingface.family import foreign_of, tensors_of
from research.huggingface.folder import read_json
from research.models.transformer import Params, Transformer
from research.tuning.lora import Lora, Override, factor_names
from research.tuning.targets import ALL_LINEAR

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TABLE = ("embed_V_D",)
_SHOWN = 8
Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """One foreign layer that can carry an adapter, and the factors of ours that it holds.

    Attributes:
      name: the foreign module, `model.layers.3.self_attn.q_proj`.
      path: of our parameter.
      slot: which entry of its L axis; None for a parameter without one.
      table: whether it is looked up by token: PEFT keeps other keys for these.
      mirrored: whether it is the tied head, which holds the table's factors the other way round.
    """

    name: str
    path: TreePath
    slot: int | None
    table: bool = False
    mirrored: bool = False

    @property
    def keys(self) -> tuple[str, str]:
        """The names of the tensors A (rank, in) and B (out, rank)."""
        if self.table:
            return f"{PREFIX}{self.name}.lora_embedding_A", f"{PREFIX}{self.name}.lora_embedding_B"
        return f"{PREFIX}{self.name}.lora_A.weight", f"{PREFIX}{self.name}.lora_B.weight"

    @property
    def factors(self) -> tuple[TreePath, TreePath]:
        """Where our factors lie in the trainable tree."""
        a_name, b_name = factor_names(declared(self.path[-1]))
        return (*self.path, a_name), (*self.path, b_name)

    def write(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        """Give the tensors of our factors, stacked or not."""
        a, b = (a, b) if self.slot is None else (a[self.slot], b[self.slot])
        rank = a.shape[-1]
        a, b = a.reshape(-1, rank), b.reshape(rank, -1)
        pair = (b, a) if self.mirrored else (a.T, b.T)
        return dict(zip(self.keys, map(np.ascontiguousarray, pair), strict=True))

    def read(self, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
        """Give A as [in, R] and B as [R, out] of our orientation, float32."""
        a, b = (tensors[key].astype(np.float32) for key in self.keys)
        return (b, a) if self.mirrored else (a.T, b.T)


def modules_of(model: Transformer) -> tuple[Module, ...]:
    """List the modules of a model that can carry an adapter, a tied head included."""
    family, found = family_for(model.arch), []
    for tensor in tensors_of(family, model.arch, model.abstract()):
        axes = declared(tensor.path[-1])
        if axes.is_kernel:
            name, slot = tensor.name.removesuffix(".weight"), next(iter(tensor.entry), None)
            found.append(Module(name=name, path=tensor.path, slot=slot, table=axes.is_table))
    if model.arch.tied_head:
        head = foreign_of(family.names["head_D_V"]).name.removesuffix(".weight")
        found.append(Module(name=head, path=TABLE, slot=None, mirrored=True))
    return tuple(found)


def write_adapter(
    folder: str | Path, model: Transformer, tuning: Lora, trainable: Params, base_name: str = ""
) -> Path:
    """Write a trained adapter, and read it back to see that it is the same.

    On a tied model an adapted embedding adapts the head too: both modules are written.

    Args:
      base_name: the model that it adapts: a hub id or a folder.

    Raises:
      FileExistsError: the folder is there and not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not empty; remove it or choose another place"
        )
    factors = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(trainable).items()}
    modules = modules_of(model)
    adapted = [module for module in modules if module.factors[0] in factors]
    tensors: dict[str, np.ndarray] = {}
    for module in adapted:
        tensors |= module.write(*(factors[path] for path in module.factors))
    ranks = {module.name: tuning.rank_and_alpha(module.path) for module in adapted}
    names = [module.name for module in modules]
    config = peft_config.write_config(tuning, ranks, names, base_name)
    if any(module.mirrored for module in adapted):
        config["ensure_weight_tying"] = True
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    _require_same(folder, model, tuning, factors)
    return folder


def _require_same(
    folder: Path, model: Transformer, tuning: Lora, factors: Mapping[TreePath, np.ndarray]
) -> None:
    back, trainable = read_adapter(folder, model)
    read = flatten(trainable)
    same = factors.keys() == read.keys() and all(
        back.rank_and_alpha(path[:-1]) == tuning.rank_and_alpha(path[:-1])
        and np.array_equal(factors[path], np.asarray(read[path]))
        for path in factors
    )
    if not same or back.rslora != tuning.rslora:
        raise RuntimeError(f"{folder} does not read back as it was written; do not use it")


def read_adapter(
    folder: str | Path, model: Transformer, params: Params | None = None
) -> tuple[Lora, Params]:
    """Read an adapter as (tuning, trainable), float32 and in the model's shardings.

    Strict where PEFT only warns: every tensor that the config asks for is there, none is left over.
    A layer that the adapter leaves out gets factors of zero; ranks and alphas that differ by layer
    are padded and folded into B. The model is the same function.

    Args:
      params: the model's weights, to be compared with the copies of embedding and head that PEFT
        stores beside adapters of these.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: what does not fit, or would change the arithmetic, and the remedy.
    """
    opened = _open(Path(folder), model, params)
    if not opened.one_head:
        raise ValueError(
            f"{folder} adapts embedding and head differently, but in this model they are one "
            "weight; give it a head of its own: research.huggingface.peft.untie(model, params)"
        )
    return _assemble(opened, model)


def separates_head(folder: str | Path, model: Transformer) -> bool:
    """Whether a tied model must be given a head of its own (`untie`) to carry the adapter.

    By default PEFT adapts embedding and head of a tied model each on its own.

    Raises:
      FileNotFoundError, ValueError: as `read_adapter`.
    """
    return not _open(Path(folder), model, None).one_head


def untie(model: Transformer, params: Params) -> tuple[Transformer, Params]:
    """Give a tied model a head of its own, a copy of the embedding: the same function."""
    arch = dataclasses.replace(model.arch, tied_head=False)
    head_D_V = params[TABLE[0]].T
    head_D_V = jax.device_put(head_D_V, model.place.weight("head_D_V", head_D_V.shape))
    return dataclasses.replace(model, arch=arch), params | {"head_D_V": head_D_V}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter folder that fits its model: what was read, before it is ours.

    Attributes:
      modules: what it adapts, a tied head included.
      ranks: module name -> (rank, alpha).
      one_head: False where embedding and head of a tied model have different adapters.
    """

    config: Mapping[str, Any]
    modules: tuple[Module, ...]
    ranks: Mapping[str, tuple[int, float]]
    tensors: Tensors
    one_head: bool


def _open(folder: Path, model: Transformer, params: Params | None) -> Adapter:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; expected a folder that PEFT saved as safetensors"
            )
    config, where = read_json(folder / CONFIG_NAME), folder / WEIGHTS_NAME
    peft_config.require_supported(config, folder / CONFIG_NAME)
    modules = _targets(config, model)
    tensors = _without_base(load_file(where), modules, params, where)
    _require_keys(tensors, modules, where)
    ranks = {module.name: peft_config.rank_and_alpha(config, module.name) for module in modules}
    _require_shapes(tensors, modules, ranks, model, where)
    one_head = not model.arch.tied_head or _ends_agree(tensors, modules, ranks)
    return Adapter(config=config, modules=modules, ranks=ranks, tensors=tensors, one_head=one_head)


def _ends_agree(
    tensors: Tensors, modules: Sequence[Module], ranks: Mapping[str, tuple[int, float]]
) -> bool:
    """Whether the two ends of a tied model have one adapter, or none."""
    ends = [module for module in modules if module.path == TABLE]
    if not ends:
        return True
    if len(ends) != 2 or ranks[ends[0].name] != ranks[ends[1].name]:
        return False
    pairs = zip(ends[0].read(tensors), ends[1].read(tensors), strict=True)
    return all(np.array_equal(table, head) for table, head in pairs)


def _targets(config: Mapping[str, Any], model: Transformer) -> tuple[Module, ...]:
    """List the modules that the config adapts; a tied head follows its table if it says so."""
    modules = modules_of(model)
    chosen = [module for module in modules if peft_config.is_target(config, module.name)]
    if config.get("ensure_weight_tying") and any(module.table for module in chosen):
        chosen += [module for module in modules if module.mirrored and module not in chosen]
    return tuple(chosen)


def _without_base(
    tensors: Tensors, modules: Sequence[Module], params: Params | None, where: Path
) -> Tensors:
    """Drop the copies of base weights, which must be the model's own."""
    held = dict(tensors)
    for module in modules:
        copy = held.pop(f"{PREFIX}{module.name}.base_layer.weight", None)
        if copy is None or params is None or module.slot is not None:
            continue
        ours = np.asarray(params[module.path[0]])
        ours = ours if module.path == TABLE else ours.T
        if copy.shape != ours.shape or not np.array_equal(ours.astype(copy.dtype), copy):
            raise ValueError(
                f"{where} stores another {module.name}.weight {copy.shape} than the model's "
                f"{ours.shape}: it was trained over other weights (a resized vocabulary?); "
                "take the model that it was trained over"
            )
    return held


def _require_keys(tensors: Tensors, modules: Sequence[Module], where: Path) -> None:
    expected = {key for module in modules for key in module.keys}
    missing, extra = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)

    def listed(kind: str, names: list[str], others: Iterable[str]) -> list[str]:
        lines = []
        for name in names[:_SHOWN]:
            near = difflib.get_close_matches(name, others, n=1)
            lines.append(f"{kind} {name}" + (f" (nearest: {near[0]})" if near else ""))
        return lines + ([f"and {len(names) - _SHOWN} more {kind}"] if len(names) > _SHOWN else [])

    problems = [*listed("missing", missing, extra), *listed("unexpected", extra, expected)]
    if problems or not expected:
        raise ValueError(
            f"{where} does not hold the adapter that its config describes for this model: "
            + ("; ".join(problems) or "target_modules match no module of it")
        )


def _require_shapes(
    tensors: Tensors,
    modules: Sequence[Module],
    ranks: Mapping[str, tuple[int, float]],
    model: Transformer,
    where: Path,
) -> None:
    leaves, problems = flatten(model.abstract()), []
    for module in modules:
        _, inputs, outputs = declared(module.path[-1]).matrix(leaves[module.path].shape)
        inputs, outputs = (outputs, inputs) if module.mirrored else (inputs, outputs)
        rank = ranks[module.name][0]
        for key, shape in zip(module.keys, ((rank, inputs), (outputs, rank)), strict=True):
            if tensors[key].shape != shape:
                problems.append(f"{key} is {tensors[key].shape}, expected {shape}")
    if problems:
        raise ValueError(
            f"{where} does not fit its config (r, rank_pattern) or this model: "
            + "; ".join(problems[:_SHOWN])
        )


def _assemble(adapter: Adapter, model: Transformer) -> tuple[Lora, Params]:
    """Say as a tuning what was read, and stack the factors over L."""
    leaves, kernels = flatten(model.abstract()), {module.path for module in modules_of(model)}
    held: dict[TreePath, list[Module]] = {}
    for module in adapter.modules:
        if not module.mirrored:
            held.setdefault(module.path, []).append(module)
    largest = {path: max(adapter.ranks[m.name] for m in found) for path, found in held.items()}
    tuning = _tuning(adapter.config, largest, kernels)
    factors: dict[TreePath, np.ndarray] = {}
    for path, found in held.items():
        parts = [(m.slot or 0, adapter.ranks[m.name], *m.read(adapter.tensors)) for m in found]
        pair = _stack(tuning, path, leaves[path].shape, parts)
        factors |= dict(zip(found[0].factors, pair, strict=True))
    tree = unflatten(factors)
    return tuning, jax.device_put(tree, model.place.weights(tree))


def _tuning(
    config: Mapping[str, Any],
    ranks: Mapping[TreePath, tuple[int, float]],
    kernels: Iterable[TreePath],
) -> Lora:
    rank, alpha = config["r"], float(config["lora_alpha"])
    special: dict[tuple[int, float], list[TreePath]] = {}
    for path, pair in ranks.items():
        if pair != (rank, alpha):
            special.setdefault(pair, []).append(path)
    return Lora(
        rank=rank,
        alpha=alpha,
        rslora=bool(config.get("use_rslora")),
        dropout=config.get("lora_dropout") or None,
        targets=_named(ranks, kernels),
        overrides=tuple(
            Override(target=target, rank=r, alpha=None if a == alpha else a)
            for (r, a), paths in sorted(special.items())
            for target in _named(paths, kernels)
        ),
    )


def _stack(
    tuning: Lora, path: TreePath, shape: tuple[int, ...], parts: Iterable[tuple]
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the factors of one parameter; layers of another rank or alpha keep scale A B."""
    axes, (rank, alpha) = declared(path[-1]), tuning.rank_and_alpha(path)
    stacks, inputs, outputs = axes.matrix(shape)
    a = np.zeros((stacks, inputs, rank), np.float32)
    b = np.zeros((stacks, rank, outputs), np.float32)
    for slot, (own_rank, own_alpha), own_a, own_b in parts:
        ratio = tuning.scale(own_rank, own_alpha) / tuning.scale(rank, alpha)
        a[slot, :, :own_rank] = own_a
        b[slot, :own_rank] = own_b * np.float32(ratio)
    split = len(shape) - len(axes.outputs)
    stack = shape[: split - len(axes.inputs)]
    return a.reshape(*shape[:split], rank), b.reshape(*stack, rank, *shape[split:])


def _named(paths: Iterable[TreePath], kernels: Iterable[TreePath]) -> tuple[str, ...]:
    """Say paths as targets, as shortly as they can be said."""
    paths, layers = set(paths), {path for path in kernels if path[0] == "layers"}
    whole = (ALL_LINEAR,) if layers <= paths else ()
    rest = paths - layers if whole else paths

    def shortest(path: TreePath) -> str:
        kin = {other for other in kernels if other[-1] == path[-1]}
        return path[-1] if kin <= rest else ".".join(path)

    return (*whole, *sorted({shortest(path) for path in rest}))
