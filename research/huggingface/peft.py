"""LoRA adapters as folders that PEFT writes and reads."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from research.core.axes import declared
from research.core.processes import require_here
from research.core.tree import Path as TreePath
from research.core.tree import flatten, unflatten
from research.huggingface import peft_config
from research.huggingface.family import Family
from research.huggingface.folder import family_of, read_json
from research.huggingface.peft_modules import (
    PREFIX,
    TABLE,
    Factors,
    LowRankPair,
    Module,
    Part,
    keys_of,
    layers_of,
    parameters_of,
)
from research.models.transformer import Params, Transformer
from research.tuning.lora import Lora, Override, factor_names
from research.tuning.targets import ALL_LINEAR, means

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
SAME = 1e-5  # float32 products in another order
_SHOWN = 8
Tensors = Mapping[str, np.ndarray]


def write_adapter(
    folder: str | Path,
    model: Transformer,
    tuning: Lora,
    trainable: Params,
    base_name: str = "",
    *,
    source: str | Path | None = None,
    stacked_experts: bool = False,
) -> Path:
    """Write a trained adapter, and read it back to see that it is the same function.

    On a tied model an adapted embedding adapts the head too: both modules are written. Parameters
    that the checkpoint holds in one tensor (query, key and value of Phi-3) get one adapter, whose
    rank is the sum of theirs.

    Args:
      base_name: the model that it adapts: a hub id or a folder, said in its config.
      source: the folder that the model came from, whose family names the modules; None: the first
        family that can say the architecture.
      stacked_experts: write experts and routers as PEFT trains them in transformers 5
        (`target_parameters`). By default each expert gets keys of its own, which vLLM reads, PEFT
        under transformers 4 too, and PEFT under transformers 5 converts. A family that stores its
        experts stacked (GPT-OSS) is always written stacked.

    Raises:
      FileExistsError: the folder is there and not empty.
      ValueError: PEFT would read the adapter as another one; the error gives the remedy.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} exists and is not empty; remove it or choose another place"
        )
    require_here(trainable, "an adapter")
    factors = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(trainable).items()}
    family = family_of(model.arch, source)
    modules = _writable(model, family, factors, stacked_experts)
    adapted = [m for m in modules if any(part.factors[0] in factors for part in m.parts)]
    said = _sayable(tuning, factors, adapted, parameters_of(model, family))
    pairs = {module.name: module.gather(factors, said) for module in adapted}
    names = [module.name for module in layers_of(model, family)]
    config = peft_config.write_config(said, adapted, pairs, names, base_name)
    tensors: dict[str, np.ndarray] = {}
    for module, keys in zip(adapted, keys_of(adapted).values(), strict=True):
        packed = map(np.ascontiguousarray, module.pack(pairs[module.name]))
        tensors |= zip(keys, packed, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    _require_same(read_adapter(folder, model, source=source), tuning, factors, folder)
    return folder


def _writable(
    model: Transformer, family: Family, factors: Factors, stacked: bool
) -> tuple[Module, ...]:
    """List the modules of a model in the layout that was asked for.

    A layer that is called like those of the experts (`gate_proj` of a shared expert) is named as a
    parameter: under transformers 5, PEFT takes its name in `target_modules` to mean the experts.

    Raises:
      ValueError: a leaf is no factor of any of them.
    """
    layers, parameters = layers_of(model, family), parameters_of(model, family)
    kernels = _paths((*layers, *parameters))
    whole = sorted(".".join(path) for path in factors if path[:-1] not in kernels)
    if whole:
        raise ValueError(
            f"{whole[:_SHOWN]} are trained whole, which an adapter does not hold; merge the tuning "
            "into the weights and save the model"
        )
    bare = _paths(parameters)
    single = [module for module in layers if bare & _paths([module])]
    words = {module.name.rpartition(".")[2] for module in single}
    rest = [
        module.as_parameter() if module.name.rpartition(".")[2] in words else module
        for module in layers
        if not bare & _paths([module])
    ]
    if stacked or not bare <= _paths(layers):
        return (*rest, *parameters)
    return (*rest, *single)


def _sayable(
    tuning: Lora, factors: Factors, adapted: Sequence[Module], parameters: Sequence[Module]
) -> Lora:
    """Say the same function in what PEFT carries over to experts: no dropout, and one scale.

    Adapters of single experts are converted under transformers 5: gate and up become one of twice
    the rank and twice the config's alpha, whatever patterns say and rsLoRA would make of it.

    Raises:
      ValueError: gate and up are not adapted alike.
    """
    single = _paths(parameters) & _paths(module for module in adapted if not module.parameter)
    if single or any(module.parameter for module in adapted):
        tuning = dataclasses.replace(tuning, dropout=None)
    for fused in (module for module in parameters if len(module.parts) > 1):
        found = {
            tuning.rank_and_alpha(part.path) if part.factors[0] in factors else None
            for part in fused.parts
        }
        if single & _paths([fused]) and found != {(tuning.rank, tuning.alpha)}:
            raise ValueError(
                f"{' and '.join(sorted('.'.join(part.path) for part in fused.parts))} have (rank, "
                f"alpha) {found}, None where not adapted; PEFT reads adapters of single experts "
                f"only where all have the tuning's own, {(tuning.rank, tuning.alpha)}. Write with "
                "stacked_experts=True"
            )
    return _without_rslora(tuning) if single else tuning


def _without_rslora(tuning: Lora) -> Lora:
    """Say alpha / sqrt(rank) as another alpha / rank."""
    if not tuning.rslora:
        return tuning
    overrides = tuple(
        dataclasses.replace(
            one, alpha=_of_rank(tuning.alpha if one.alpha is None else one.alpha, one.rank)
        )
        for one in tuning.overrides
    )
    alpha = _of_rank(tuning.alpha, tuning.rank)
    return dataclasses.replace(tuning, rslora=False, alpha=alpha, overrides=overrides)


def _of_rank(alpha: float, rank: int) -> float:
    return float(alpha) * math.sqrt(rank)


def _paths(modules: Iterable[Module]) -> set[TreePath]:
    return {part.path for module in modules for part in module.parts}


def _require_same(
    read_back: tuple[Lora, Params], tuning: Lora, factors: Factors, folder: Path
) -> None:
    """See that what was written is read as the same function.

    Raises:
      RuntimeError: it is not.
    """
    read = {path: np.asarray(leaf) for path, leaf in flatten(read_back[1]).items()}
    ours, theirs = _effects(tuning, factors), _effects(read_back[0], read)
    for path in ours.keys() | theirs.keys():
        expected, found = ours.get(path, np.float32(0)), theirs.get(path, np.float32(0))
        if np.abs(expected - found).max() > SAME * np.abs(expected).max():
            raise RuntimeError(
                f"{folder} does not read back as it was written ({'.'.join(path)}); do not use it"
            )


def _effects(tuning: Lora, factors: Factors) -> dict[TreePath, np.ndarray]:
    """Send one random input through every adapter."""
    found = {}
    for path in {path[:-1] for path in factors}:
        axes = declared(path[-1])
        a, b = (factors[*path, name] for name in factor_names(axes))
        bank, rank = a.shape[: a.ndim - 1 - len(axes.inputs)], a.shape[-1]
        a, b = a.reshape(*bank, -1, rank), b.reshape(*bank, rank, -1)
        x = np.random.RandomState(0).standard_normal(a.shape[-2]).astype(np.float32)
        scale = np.float32(tuning.scale(*tuning.rank_and_alpha(path)))
        found[path] = scale * ((x @ a)[..., None, :] @ b)[..., 0, :]
    return found


def read_adapter(
    folder: str | Path,
    model: Transformer,
    params: Params | None = None,
    *,
    source: str | Path | None = None,
) -> tuple[Lora, Params]:
    """Read an adapter as (tuning, trainable), float32 and in the model's shardings.

    Strict where PEFT only warns: every tensor that the config asks for is there, none is left over.
    A layer that the adapter leaves out gets factors of zero; ranks and alphas that differ by layer
    are padded and folded into B; parameters that share one adapter get its A each, and their own
    rows of B. The model is the same function.

    Args:
      params: the model's weights, to be compared with the copies of embedding and head that PEFT
        stores beside adapters of these.
      source: as in `write_adapter`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: what does not fit, or would change the arithmetic, and the remedy.
    """
    family = family_of(model.arch, source)
    opened = _open(Path(folder), model, family, params)
    if not opened.one_head:
        raise ValueError(
            f"{folder} adapts embedding and head differently, but in this model they are one "
            "weight; give it a head of its own: research.huggingface.peft.untie(model, params)"
        )
    return _assemble(opened, model, family)


def separates_head(
    folder: str | Path, model: Transformer, *, source: str | Path | None = None
) -> bool:
    """Whether a tied model must be given a head of its own (`untie`) to carry the adapter.

    By default PEFT adapts embedding and head of a tied model each on its own.

    Raises:
      FileNotFoundError, ValueError: as `read_adapter`.
    """
    return not _open(Path(folder), model, family_of(model.arch, source), None).one_head


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
      modules: what it adapts, a tied head included, each with its tensors.
      one_head: False where embedding and head of a tied model have different adapters.
    """

    config: Mapping[str, Any]
    modules: tuple[tuple[Module, LowRankPair], ...]
    one_head: bool


def _open(folder: Path, model: Transformer, family: Family, params: Params | None) -> Adapter:
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; expected a folder that PEFT saved as safetensors"
            )
    config, where = read_json(folder / CONFIG_NAME), folder / WEIGHTS_NAME
    peft_config.require_supported(config, folder / CONFIG_NAME)
    modules = _targets(config, model, family, folder / CONFIG_NAME)
    keys = keys_of(modules)
    tensors = _without_base(load_file(where), modules, params, where)
    _require_keys(tensors, {key for pair in keys.values() for key in pair}, where)
    ranks = {module.name: peft_config.rank_and_alpha(config, module.name) for module in modules}
    _require_shapes(tensors, modules, keys, ranks, where)
    pairs = tuple(
        (module, module.unpack([tensors[key] for key in keys[module.name]], *ranks[module.name]))
        for module in modules
    )
    one_head = not model.arch.tied_head or _ends_agree(pairs)
    return Adapter(config=config, modules=pairs, one_head=one_head)


def _ends_agree(modules: Iterable[tuple[Module, LowRankPair]]) -> bool:
    """Whether the two ends of a tied model have one adapter, or none."""
    ends = [pair for module, pair in modules if module.parts[0].path == TABLE]
    if len(ends) != 2:
        return not ends
    one, other = ends
    return (
        (one.rank, one.alpha) == (other.rank, other.alpha)
        and np.array_equal(one.a_ERI, other.a_ERI)
        and np.array_equal(one.b_EOR, other.b_EOR)
    )


def _targets(
    config: Mapping[str, Any], model: Transformer, family: Family, where: Path
) -> tuple[Module, ...]:
    """List the modules that the config adapts; a tied head follows its table if it says so.

    Raises:
      ValueError: experts are adapted both one by one and stacked.
    """
    layers = layers_of(model, family)
    parameters = parameters_of(model, family)
    single = _paths(parameters)
    chosen = [
        module
        for module in layers
        if peft_config.is_target(config, module.name)
        or (
            not single & _paths([module])
            and peft_config.is_target_parameter(config, module.as_parameter().name)
        )
    ]
    if config.get("ensure_weight_tying") and any(m.parts[0].path == TABLE for m in chosen):
        chosen += [module for module in layers if module.mirrored and module not in chosen]
    bare = [m for m in parameters if peft_config.is_target_parameter(config, m.name)]
    if twice := sorted(".".join(path) for path in _paths(chosen) & _paths(bare)):
        raise ValueError(
            f"{where} adapts {twice[:_SHOWN]} both by target_modules and by target_parameters; "
            "expected one of the two"
        )
    return (*chosen, *bare)


def _without_base(
    tensors: Tensors, modules: Sequence[Module], params: Params | None, where: Path
) -> Tensors:
    """Drop the copies of base weights, which must be the model's own."""
    held = dict(tensors)
    for module in modules:
        copy, part = held.pop(f"{PREFIX}{module.name}.base_layer.weight", None), module.parts[0]
        if copy is None or params is None or part.entry:
            continue
        ours = np.asarray(params[part.path[0]])
        ours = ours if declared(part.path[0]).is_table else ours.T
        if copy.shape != ours.shape or not np.array_equal(ours.astype(copy.dtype), copy):
            raise ValueError(
                f"{where} stores another {module.name}.weight {copy.shape} than the model's "
                f"{ours.shape}: it was trained over other weights (a resized vocabulary?); "
                "take the model that it was trained over"
            )
    return held


def _require_keys(tensors: Tensors, expected: set[str], where: Path) -> None:
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
    keys: Mapping[str, tuple[str, str]],
    ranks: Mapping[str, tuple[int, float]],
    where: Path,
) -> None:
    problems = [
        f"{key} is {tensors[key].shape}, expected {shape}"
        for module in modules
        for key, shape in zip(keys[module.name], module.shapes(ranks[module.name][0]), strict=True)
        if tensors[key].shape != shape
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit its config (r, rank_pattern) or this model: "
            + "; ".join(problems[:_SHOWN])
        )


def _assemble(adapter: Adapter, model: Transformer, family: Family) -> tuple[Lora, Params]:
    """Say as a tuning what was read, and stack the factors over layers and experts."""
    leaves = flatten(model.abstract())
    kernels = _paths((*layers_of(model, family), *parameters_of(model, family)))
    held: dict[TreePath, list[tuple[Part, LowRankPair]]] = {}
    for module, pair in adapter.modules:
        for part, own in module.scatter(pair, bool(adapter.config.get("use_rslora"))):
            if not module.mirrored:
                held.setdefault(part.path, []).append((part, own))
    largest = {path: max((own.rank, own.alpha) for _, own in found) for path, found in held.items()}
    tuning = _tuning(adapter.config, largest, kernels)
    factors: dict[TreePath, np.ndarray] = {}
    for path, found in held.items():
        pair = _stack(tuning, path, leaves[path].shape, found)
        factors |= dict(zip(found[0][0].factors, pair, strict=True))
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
    tuning: Lora,
    path: TreePath,
    shape: tuple[int, ...],
    parts: Iterable[tuple[Part, LowRankPair]],
) -> tuple[np.ndarray, np.ndarray]:
    """Fill the factors of one parameter; layers of another rank or alpha keep scale A B."""
    axes, (rank, alpha) = declared(path[-1]), tuning.rank_and_alpha(path)
    split = len(shape) - len(axes.outputs)
    bank, inputs, outputs = shape[: split - len(axes.inputs)], shape[:split], shape[split:]
    _, num_inputs, num_outputs = axes.matrix(shape)
    a = np.zeros((*bank, num_inputs, rank), np.float32)
    b = np.zeros((*bank, rank, num_outputs), np.float32)
    for part, own in parts:
        ratio = tuning.scale(own.rank, own.alpha) / tuning.scale(rank, alpha)
        own_a, own_b = own.a_ERI.swapaxes(1, 2), own.b_EOR.swapaxes(1, 2) * np.float32(ratio)
        a[part.entry][..., : own.rank] = own_a if a[part.entry].ndim == 3 else own_a[0]
        b[part.entry][..., : own.rank, :] = own_b if b[part.entry].ndim == 3 else own_b[0]
    return a.reshape(*inputs, rank), b.reshape(*bank, rank, *outputs)


def _named(paths: Iterable[TreePath], kernels: Iterable[TreePath]) -> tuple[str, ...]:
    """Say paths as targets, as shortly as they can be said."""
    paths, linear = set(paths), {path for path in kernels if means(ALL_LINEAR, path)}
    whole = (ALL_LINEAR,) if linear <= paths else ()
    rest = paths - linear if whole else paths

    def shortest(path: TreePath) -> str:
        kin = {other for other in kernels if other[-1] == path[-1]}
        return path[-1] if kin <= rest else ".".join(path)

    return (*whole, *sorted({shortest(path) for path in rest}))
