"""LoRA in PEFT's files.

ΔW = alpha / r * B A with A `[r, in]` and B `[out, r]`, the transposes of our fields.
https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint
"""

import collections
from typing import Any

import numpy as np

from jaxtune import tree
from jaxtune.adapt import LoRA
from jaxtune.interop import fields
from jaxtune.interop.peft.format import PREFIX, Export, Format, Import, Written
from jaxtune.interop.peft.modules import Module
from jaxtune.typing import InputError, Params

# Starts that leave the base weights as they are.
_INITS = (None, True, False, 'gaussian', 'eva', 'orthogonal')


def _joined(module: Module, leaves: list[Any]) -> tuple[np.ndarray, np.ndarray, float]:
  """`(A [r, in], B [out, r], alpha / r)` of a module.

  The factors of the parts of a fused tensor stand side by side: A of all under each other, B with a
  block for each, and their scales in B.
  """
  if len(leaves) == 1:
    return leaves[0].a.T, leaves[0].b.T, float(leaves[0].scale)
  parts = [piece.row.part for piece in module.weight if piece.row.part is not None]
  total = sum(map(len, parts))
  adapters = [(rows, leaf) for rows, leaf in zip(parts, leaves, strict=True) if _is(leaf)]
  rank = sum(leaf.a.shape[1] for _, leaf in adapters)
  b, start = np.zeros((total, rank), np.float32), 0
  for rows, leaf in adapters:
    stop = start + leaf.a.shape[1]
    b[rows, start:stop] = float(leaf.scale) * leaf.b.T
    start = stop
  return np.concatenate([leaf.a.T for _, leaf in adapters]), b, 1.0


def _alpha(scale: float, rank: int) -> int | float:
  """The shortest alpha from which a reader gets this very scale, a float32."""
  shorter = (float(f'{scale * rank:.{digits}g}') for digits in range(6, 17))
  alpha = next(x for x in (*shorter, scale * rank) if np.float32(x / rank) == np.float32(scale))
  return int(alpha) if alpha.is_integer() else alpha


def _is(leaf: Any) -> bool:
  return isinstance(leaf, LoRA)


def _write(export: Export) -> Written:
  tensors: dict[str, np.ndarray] = {}
  ranks: dict[str, int] = {}
  alphas: dict[str, float] = {}
  for path, leaf in tree.named_weights(export.params):
    if _is(leaf) and path.startswith('embed/'):
      raise InputError(
        f'{path!r} is an embedding, whose adapter PEFT applies in another way to tied heads; '
        'write the whole model with save_hf'
      )
  for module, leaves in export.adapted():
    a, b, scale = _joined(module, leaves)
    tensors[f'{PREFIX}{module.name}.lora_A.weight'] = np.ascontiguousarray(a)
    tensors[f'{PREFIX}{module.name}.lora_B.weight'] = np.ascontiguousarray(b)
    ranks[module.name], alphas[module.name] = len(a), _alpha(scale, len(a))
  rank = collections.Counter(ranks.values()).most_common(1)[0][0]
  alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
  return Written(
    tensors,
    set(ranks),
    {
      'r': rank,
      'lora_alpha': alpha,
      'rank_pattern': {module: r for module, r in ranks.items() if r != rank},
      'alpha_pattern': {module: a for module, a in alphas.items() if a != alpha},
      'lora_dropout': 0.0,
      'bias': 'none',
      'use_rslora': False,
      'use_dora': False,
      'fan_in_fan_out': False,
      'init_lora_weights': True,
    },
  )


def _read(files: Import) -> Params:
  fields.refuse(files.config, files.file, bias='none', use_dora=False)
  if files.config.get('init_lora_weights') not in _INITS:
    raise InputError(
      f'{files.file}: init_lora_weights is {files.config["init_lora_weights"]!r}, which changes '
      'the base; export it with PEFT as plain LoRA (path_initial_model_for_weight_conversion)'
    )

  for name, tensor in files.tensors.items():
    if 'lora_embedding_' in name:
      raise InputError(f'{files.folder}: holds {tensor.name}: adapters on embeddings are unknown')

  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    a, b = f'{module.name}.lora_A.weight', f'{module.name}.lora_B.weight'
    if a not in files.tensors and b not in files.tensors:
      return None
    rank = files.integer('r', files.setting(module.name, 'lora_A.weight', 'r', 'rank_pattern'))
    alpha = files.real(
      'lora_alpha', files.setting(module.name, 'lora_A.weight', 'lora_alpha', 'alpha_pattern')
    )
    scale = alpha / (rank**0.5 if files.config.get('use_rslora') else rank)
    return {
      'a': files.read(a, (rank, shape[0])).T,
      'b': files.read(b, (shape[1], rank)).T,
      'scale': np.array(scale, np.float32),
    }

  def blank(weight: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in like.items()} | {
      'scale': np.ones((), np.float32)
    }

  return files.wrapped(
    find,
    blank,
    LoRA,
    part=lambda found, rows: found | {'b': found['b'][:, rows]},
    pattern=r'^(?!embed/)',
  )


LORA = Format(
  peft_type='LORA',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/[ab]$',
  moves=lambda name, values: '.lora_B.' in name and bool(values.any()),
  known=frozenset(
    'alpha_pattern bias init_lora_weights lora_alpha lora_dropout r rank_pattern use_rslora '
    'use_dora fan_in_fan_out loftq_config megatron_core qalora_group_size eva_config corda_config '
    'lora_ga_config ensure_weight_tying layers_pattern'.split()
  ),
)
