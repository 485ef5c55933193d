"""AdaLoRA in PEFT's files.

ΔW = alpha / (init_r + 1e-5) * B (E ∘ A) with A `[r, in]`, E `[r, 1]` and B `[out, r]`, the
transposes of our fields. A file has one `init_r` and one alpha for all modules, and once the ranks
are settled `rank_pattern`, which of the `init_r` triplets of each module are left: its tensors have
no others, and its scale stays that of `init_r`. Ours settles only ranks that differ from the start:
triplets that the budget has cut go along with an E of zero.
"""

import collections
from typing import Any

import numpy as np

from jaxtune.adapt import AdaLoRA
from jaxtune.interop.peft.format import PREFIX, Export, Format, Import, Written, plain, zeros
from jaxtune.interop.peft.modules import Module, side_by_side
from jaxtune.typing import InputError, Params

_TINY = 1e-5  # which PEFT adds to the rank


def _is(leaf: Any) -> bool:
  return isinstance(leaf, AdaLoRA)


def _joined(module: Module, leaves: list[Any]) -> tuple[dict[str, np.ndarray], float]:
  """`(A, E and B by PEFT's names, scale)`; the parts of a fused tensor as LoRA has them."""
  if module.weight[0].row.part is None:
    (leaf,) = leaves
    return {'A': leaf.a.T, 'E': leaf.e[:, None], 'B': leaf.b.T}, float(leaf.scale)
  adapters = [leaf for leaf in leaves if _is(leaf)]
  b = side_by_side(module.weight, [leaf.b.T if _is(leaf) else None for leaf in leaves])
  a = np.concatenate([leaf.a.T for leaf in adapters])
  e = np.concatenate([leaf.e * leaf.scale for leaf in adapters])
  return {'A': a, 'E': e[:, None], 'B': b}, 1.0


def _write(export: Export) -> Written:
  found = []
  for module, leaves in export.adapted():
    if module.weight[0].path.startswith('embed/'):
      raise InputError(
        f'{module.weight[0].path!r} is an embedding, on which PEFT has no AdaLoRA; write the whole '
        'model with save_hf'
      )
    found.append((module, *_joined(module, leaves)))
  rank = max(len(factors['A']) for _, factors, _ in found)
  alphas = {module.name: plain(scale * (rank + _TINY)) for module, _, scale in found}
  alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
  tensors, widths = {}, {}
  for module, factors, _ in found:
    own = alphas[module.name]
    scaled = factors if own == alpha else factors | {'E': factors['E'] * np.float32(own / alpha)}
    for name, values in scaled.items():
      tensors[f'{PREFIX}{module.name}.lora_{name}'] = np.ascontiguousarray(values)
    widths[f'{module.name}.lora_E'] = len(factors['E'])
  kept = {name: [n < width for n in range(rank)] for name, width in widths.items()}
  used = np.mean([np.count_nonzero(factors['E']) for _, factors, _ in found])
  return Written(
    tensors,
    set(alphas),
    {
      'init_r': rank,
      'target_r': max(1, round(float(used))),
      'lora_alpha': alpha,
      'lora_dropout': 0.0,
      'bias': 'none',
      'fan_in_fan_out': any(not module.weight[0].row.transpose for module, *_ in found),
      'init_lora_weights': True,
      'rank_pattern': kept if min(widths.values()) < rank else None,
      # Nothing is left to do, which PEFT takes from at least one step.
      'tinit': 0,
      'tfinal': 0,
      'total_step': 1,
    },
  )


def _read(files: Import) -> Params:
  alpha = files.real('lora_alpha', files.config.get('lora_alpha'))
  init = files.integer('init_r', files.config.get('init_r'))
  scale = alpha / (init + _TINY)

  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    a, e, b = (f'{module.name}.lora_{name}' for name in 'AEB')
    if not any(name in files.tensors for name in (a, e, b)):
      return None
    rank = files.tensors[e].shape[0] if e in files.tensors else init
    return {
      'a': files.read(a, (rank, shape[0])).T,
      'e': files.read(e, (rank, 1))[:, 0],
      'b': files.read(b, (shape[1], rank)).T,
      'scale': np.array(scale, np.float32),
    }

  def blank(weight: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return zeros(weight, like, scale)

  return files.wrapped(
    find,
    blank,
    AdaLoRA,
    part=lambda found, rows: found | {'b': found['b'][:, rows]},
    pattern=r'^(?!embed/)',
  )


ADALORA = Format(
  peft_type='ADALORA',
  holds=lambda path, leaf, trains: _is(leaf),
  write=_write,
  read=_read,
  trained=r'/[abe]$',
  biases='lora_only',
  moves=lambda name, values: name.endswith('.lora_E') and bool(values.any()),
  # Of training, or of LoRA and without effect here, as `alpha_pattern`.
  known=frozenset(
    'alpha_pattern beta1 beta2 bias deltaT fan_in_fan_out init_lora_weights init_r '
    'layers_pattern lora_alpha lora_dropout orth_reg_weight r rank_pattern target_r tfinal tinit '
    'total_step use_rslora loftq_config megatron_core qalora_group_size eva_config corda_config '
    'lora_ga_config ensure_weight_tying'.split()
  ),
)
