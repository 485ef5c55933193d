"""What a method trained, in a file of jaxtune's own, for adapters that no other tool has."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxtune import adapt, tree
from jaxtune.adapt import Adapted
from jaxtune.interop.fields import read_json
from jaxtune.interop.labels import FILE, check_labels
from jaxtune.interop.peft.base import check_base, fingerprint
from jaxtune.interop.peft.modules import VIRTUAL
from jaxtune.interop.source import locate
from jaxtune.interop.tensors import open_safetensors
from jaxtune.interop.write import new_folder, write_json
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

TRAINED = 'trained.safetensors'


def merge_obstacle(params: Params) -> str | None:
  """Why no model of plain weights computes what these parameters do; None when one does."""
  virtual = next((name for name in VIRTUAL if name in params), None)
  if virtual:
    return f'the {virtual} is no weight of the model'
  try:
    jax.eval_shape(adapt.merge, params)
  except InputError as error:
    return str(error).partition(';')[0]
  return None


def save_trained(
  folder: str | os.PathLike[str],
  model: ModelSpec,
  params: Params,
  labels: Sequence[str] | None = None,
  card: str | None = None,
) -> None:
  """Writes the trained leaves by their paths, which `load_trained` opens under the same method.

  For what neither PEFT's files (`save_peft`) nor merged weights (`save_hf`) can hold, such as
  bottleneck adapters. Nothing of the base is in it but a fingerprint.

  Args:
    folder: to write `trained.safetensors` in; an earlier export there is replaced.
    model: for the number of labels.
    params: the parameters as a method of `jaxtune.adapt` returned them, trained.
    labels: names of a classifier's outputs, written beside in `jaxtune.json`.
    card: text of a README.md.

  Raises:
    InputError: nothing trains, or it holds NaN.
  """
  if labels is not None:
    check_labels(tuple(labels), model.config.outputs)
  trainable, _ = adapt.trainable(params)
  leaves = dict(zip(tree.paths(trainable), jax.tree.leaves(trainable), strict=True))
  if not leaves:
    raise InputError('nothing trains, so there is nothing to write; apply a method first')
  tensors = {path: np.asarray(leaf) for path, leaf in leaves.items()}
  _check_finite(tensors, 'the parameters')
  own: dict[str, Any] = {'base': fingerprint(params, set(tensors))}
  if labels is not None:
    own['labels'] = list(labels)
  with new_folder(folder) as fresh:
    safetensors.numpy.save_file(tensors, fresh / TRAINED, metadata={'format': 'jaxtune'})
    write_json(fresh / FILE, own)
    if card is not None:
      (fresh / 'README.md').write_text(card, encoding='utf-8')


def load_trained(folder: str | os.PathLike[str], params: Params) -> Adapted:
  """The parameters with the trained leaves of a file, ready to run or to train on.

  Args:
    folder: that `save_trained` wrote, or a Hub id.
    params: the base's, after the method that was trained, with the same options, as in
      `adapt.bottleneck(key, params, 16)`.

  Raises:
    InputError: the file is damaged, or of another method, other options or another base.
  """
  path = locate(folder)
  file = path / TRAINED
  if not file.exists():
    raise InputError(f'{path}: has no {TRAINED}; give a folder that save_trained wrote')
  own = path / FILE
  if own.exists():
    check_base(params, read_json(own).get('base') or {}, str(own))
  found = open_safetensors(file)
  trainable, frozen = adapt.trainable(params)
  wanted = dict(zip(tree.paths(trainable), jax.tree.leaves(trainable), strict=True))
  other = sorted(set(wanted) ^ set(found))
  if other:
    raise InputError(
      f'{file}: {"lacks" if other[0] in wanted else "holds"} {other[0]}, which the method of these '
      f'parameters {"trains" if other[0] in wanted else "does not train"}; apply the method that '
      'was trained, with its options'
    )
  for name, leaf in wanted.items():
    if found[name].shape != leaf.shape:
      raise InputError(
        f'{file}: {name} is {list(found[name].shape)}, but the method makes it {list(leaf.shape)}; '
        'apply it with the options that were trained'
      )
  tensors = {name: found[name].read() for name in wanted}
  _check_finite(tensors, str(file))
  read = [jnp.asarray(tensors[name], leaf.dtype) for name, leaf in wanted.items()]
  trained = jax.tree.unflatten(jax.tree.structure(trainable), read)
  return Adapted(tree.combine(trained, frozen), adapt.rules_of(params))


def _check_finite(tensors: dict[str, np.ndarray], where: str) -> None:
  for name, values in tensors.items():
    if not np.isfinite(values.astype(np.float32)).all():
      raise InputError(f'{where}: {name} holds NaN or infinite numbers; train again')
