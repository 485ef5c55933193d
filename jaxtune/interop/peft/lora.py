"""LoRA in PEFT's files.

ΔW = alpha / r * B A with A `[r, in]` and B `[out, r]`, the transposes of our fields. Where the
start took `scale * A0 B0` out of the base, ΔW is `scale * (A B - A0 B0)`, of twice the rank, on the
base as it was. What a quantized base (LoftQ, QLoRA) misses of that one is not in the file: loaded
on the base in full precision, an adapter adds what training moved and no rounding.

DoRA adds a `lora_magnitude_vector` `[out]`, our m, to each module. Embeddings: `lora_embedding`;
trained rows of them: `tokens`.
https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint
"""

from typing import Any

import numpy as np

from jaxtune import ops, tree
from jaxtune.adapt import DoRA, DroppedLoRA, LoRA
from jaxtune.adapt.dora import dora_leaf
from jaxtune.adapt.lora_starts import since_start
from jaxtune.interop.peft.format import (
  PREFIX,
  Export,
  Format,
  Import,
  Written,
  patterns,
  plain,
  zeros,
)
from jaxtune.interop.peft.lora_embedding import embedding_tensors, read_embeddings
from jaxtune.interop.peft.modules import Module, by_part, side_by_side
from jaxtune.interop.peft.tokens import is_tokens, read_tokens_beside, tokens_beside
from jaxtune.typing import InputError, Params

# Starts that leave the base weights as they are.
_INITS = (None, True, False, 'gaussian', 'eva', 'orthogonal')


def _joined(module: Module, leaves: list[Any]) -> tuple[np.ndarray, np.ndarray, float]:
  """`(A [r, in], B [out, r], alpha / r)` of a module.

  The factors of the parts of a fused tensor stand side by side: A of all under each other, B with a
  block for each, and their scales in B.
  """
  if module.weight[0].row.part is None:
    a, b = since_start(leaves[0])
    return a.T, b.T, float(leaves[0].scale)
  factors = [since_start(leaf) if _is(leaf) else None for leaf in leaves]
  blocks = [
    None if own is None else float(leaf.scale) * own[1].T
    for leaf, own in zip(leaves, factors, strict=True)
  ]
  a = np.concatenate([own[0].T for own in factors if own is not None])
  return a, side_by_side(module.weight, blocks), 1.0


def _lengths(module: Module, leaves: list[Any]) -> np.ndarray:
  """DoRA's lengths of all columns `[out]`; of a weight without them those that it has."""

  def own(leaf: Any) -> np.ndarray:
    if isinstance(leaf, DoRA):
      return np.asarray(leaf.m)
    return np.linalg.norm(np.asarray(ops.materialize(leaf), np.float32), axis=-2)

  return by_part(module.weight, [own(leaf) for leaf in leaves])


def _alpha(scale: float, rank: int) -> int | float:
  """The shortest alpha from which a reader gets this very scale, a float32."""
  shorter = (float(f'{scale * rank:.{digits}g}') for digits in range(6, 17))
  alpha = next(x for x in (*shorter, scale * rank) if np.float32(x / rank) == np.float32(scale))
  return int(alpha) if alpha.is_integer() else alpha


def _dropout(export: Export) -> float:
  """The largest: a file has one for all modules."""
  leaves = [leaf for _, leaf in tree.named_weights(export.params)]
  rates = [np.max(leaf.dropout) for leaf in leaves if isinstance(leaf, DroppedLoRA)]
  return float(plain(max(rates, default=0.0)))


def _is(leaf: Any) -> bool:
  return isinstance(leaf, LoRA | DoRA)


def _write(export: Export) -> Written:
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  alphas: dict[str, float] = {}
  adapted = export.adapted()
  dora = any(isinstance(leaf, DoRA) for _, leaves in adapted for leaf in leaves)
  transposed = tied = False
  for module, leaves in adapted:
    name = f'{PREFIX}{module.name}'
    if module.weight[0].path.startswith('embed/'):
      found = embedding_tensors(export, module, leaves[0], dora)
      for owner, own in found.items():
        tensors |= own
        ranks[owner] = since_start(leaves[0])[0].shape[-1]
        alphas[owner] = _alpha(float(leaves[0].scale), ranks[owner])
      tied = tied or len(found) > 1
      continue
    a, b, scale = _joined(module, leaves)
    tensors[f'{name}.lora_A.weight'] = np.ascontiguousarray(a)
    tensors[f'{name}.lora_B.weight'] = np.ascontiguousarray(b)
    if dora:  # of all or none: LoRA is DoRA whose columns have the lengths that they have
      tensors[f'{name}.lora_magnitude_vector'] = _lengths(module, leaves)
    ranks[module.name], alphas[module.name] = len(a), _alpha(scale, len(a))
    transposed = transposed or not module.weight[0].row.transpose
  rows, indices = tokens_beside(export)
  return Written(
    tensors | rows,
    set(ranks),
    patterns(ranks, alphas, 'lora_alpha')
    | {
      'lora_dropout': _dropout(export),
      'bias': 'none',
      'use_rslora': False,
      'use_dora': dora,
      'fan_in_fan_out': transposed,
      'init_lora_weights': True,
    }
    | indices
    | ({'ensure_weight_tying': True} if tied else {}),
    beside=[name.removeprefix(PREFIX).rpartition('.')[0] for name in rows],
  )


def _read(files: Import) -> Params:
  if files.config.get('init_lora_weights') not in _INITS:
    raise InputError(
      f'{files.file}: init_lora_weights is {files.config["init_lora_weights"]!r}, which changes '
      'the base; export it with PEFT as plain LoRA (path_initial_model_for_weight_conversion)'
    )

  dora = bool(files.config.get('use_dora'))
  dropout = files.config.get('lora_dropout') or 0
  dropout = files.real('lora_dropout', dropout) if dropout else 0
  dropped = bool(dropout) and not dora

  def pair(module: Module, a: str, b: str, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    """The factors by the names of their tensors; None without an adapter."""
    first, second = f'{module.name}.{a}', f'{module.name}.{b}'
    if first not in files.tensors and second not in files.tensors:
      return None
    rank = files.integer('r', files.setting(module.name, a, 'r', 'rank_pattern'))
    alpha = files.real('lora_alpha', files.setting(module.name, a, 'lora_alpha', 'alpha_pattern'))
    scale = alpha / (rank**0.5 if files.config.get('use_rslora') else rank)
    return {
      'a': files.read(first, (rank, shape[0])).T,
      'b': files.read(second, (shape[1], rank)).T,
      'scale': np.array(scale, np.float32),
    }

  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    found = pair(module, 'lora_A.weight', 'lora_B.weight', shape)
    if found is None:
      return None
    if dora:
      lengths = f'{module.name}.lora_magnitude_vector'
      old = f'{lengths}.weight'
      found['m'] = files.read(old if old in files.tensors else lengths, (shape[1],))
    return found | ({'dropout': np.array(dropout, np.float32)} if dropped else {})

  def blank(weight: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return zeros(weight, like) | ({'m': np.linalg.norm(weight, axis=-2)} if dora else {})

  def part(found: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return found | {'b': found['b'][:, rows]} | ({'m': found['m'][rows]} if dora else {})

  make = dora_leaf if dora else DroppedLoRA if dropped else LoRA
  params = files.wrapped(find, blank, make, part, r'^(?!embed/)')
  files = files._replace(params=read_embeddings(files._replace(params=params), pair, dora))
  return read_tokens_beside(files)


LORA = Format(
  peft_type='LORA',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/([abm]|rows)$',
  moves=lambda name, values: (
    bool(values.any()) and ('.lora_B.' in name or name.endswith('.lora_embedding_B'))
  ),
  biases='lora_only',
  beside=is_tokens,
  known=frozenset(
    'alpha_pattern bias init_lora_weights lora_alpha lora_dropout r rank_pattern use_rslora '
    'use_dora fan_in_fan_out loftq_config megatron_core qalora_group_size eva_config corda_config '
    'lora_ga_config ensure_weight_tying layers_pattern '
    'trainable_token_indices'.split()
  ),
)
