"""A smaller model made of some layers of a larger one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxtune import tree
from jaxtune.models.block import BlockConfig
from jaxtune.models.classifier import build
from jaxtune.models.encoder_decoder import EncoderDecoderConfig
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Params

_PER_LAYER = ('rotated', 'local', 'sparse')  # of a configuration, one entry a layer


def student(
  model: ModelSpec, params: Params, layers: int | Sequence[int]
) -> tuple[ModelSpec, Params]:
  """The model with some of its layers, and all else as it is: what a student starts from.

  DistilBERT, Sanh et al. 2019, arXiv:1910.01108, section 3: layers of the teacher, evenly spaced.
  Of 12 layers 6 are 0, 2, 4, 7, 9 and 11, which are those that its authors took. The first and the
  last are kept: they read the embeddings and write what the head reads.

  It is a model like any other: methods, training and `interop.save_hf` take it. Tune it with
  `losses.distillation`; as it is, it says little.

  Args:
    model: a built-in one. Of an encoder-decoder both stacks are cut.
    params: its parameters; any weight may be a weight leaf.
    layers: how many, evenly spaced; or which ones, in their order.

  Returns:
    `(model, params)`; arrays of kept layers are copies, others are shared.

  Raises:
    InputError: a model of a user's own, or layers that it does not have.
  """
  config = model.config
  if not isinstance(config, BlockConfig):
    raise InputError(f'{model.family} is a module of your own: take its layers yourself')
  chosen = _chosen(config.layers, layers)
  changes: dict[str, Any] = {'layers': len(chosen)}
  for name in _PER_LAYER:
    values = getattr(config, name)
    kept = tuple(values[i] for i in chosen) if values else ()
    changes[name] = () if all(kept) else kept  # which is how a configuration says all layers
  if config.local and not any(config.local[i] for i in chosen):
    changes |= {'window': 0, 'local': ()}
  if not config.first_norm and chosen[0]:
    raise InputError(f'layers are {chosen}, but the first of this model has no norm; keep layer 0')
  stacks = {name: chosen for name in ('encoder', 'decoder') if name in params}
  if isinstance(config, EncoderDecoderConfig) and config.decoder_layers:
    stacks['decoder'] = _chosen(config.decoder_layers, layers)
    changes['decoder_layers'] = len(stacks['decoder'])
  made = {**params, **{name: _taken(params[name], which) for name, which in stacks.items()}}
  if 'prefix' in params:
    made['prefix'] = jax.tree.map(lambda x: x[np.array(chosen)], params['prefix'])
  spec = build(dataclasses.replace(config, **changes))
  return dataclasses.replace(spec, source=model.source), made


def _chosen(total: int, layers: int | Sequence[int]) -> list[int]:
  if isinstance(layers, int):
    if not 1 <= layers <= total:
      raise InputError(f'layers is {layers}; this model has {total}, so take from 1 to {total}')
    return [int(i) for i in np.rint(np.linspace(0, total - 1, layers))]
  chosen = [int(i) for i in layers]
  if not chosen or sorted(set(chosen)) != chosen or not 0 <= chosen[0] <= chosen[-1] < total:
    raise InputError(
      f'layers are {chosen}; give some of 0 to {total - 1}, each once and in their order'
    )
  return chosen


def _taken(stack: Params, chosen: Sequence[int]) -> Params:
  """The chosen layers, in one segment where they were in one."""
  taken, first = {}, 0
  for segment in tree.segments(stack):
    start, end = tree.bounds(segment)
    own = np.array([layer - start for layer in chosen if start <= layer < end], int)
    if own.size:
      part = jax.tree.map(lambda x: x[own], stack[segment])  # noqa: B023
      taken[f'{first}-{first + len(own) - 1}'] = part
      first += len(own)
  return taken
