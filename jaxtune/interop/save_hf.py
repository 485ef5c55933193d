"""A whole model as a Hugging Face folder."""

import collections
import itertools
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from jaxtune import adapt, ops, tree
from jaxtune.interop.families import family_of
from jaxtune.interop.fields import read_json
from jaxtune.interop.folder import open_weights, task_of
from jaxtune.interop.labels import check_labels
from jaxtune.interop.names import Family, Tensors, bare_name, full_name, tensors_of
from jaxtune.interop.peft.modules import VIRTUAL
from jaxtune.interop.source import locate
from jaxtune.interop.tokenizer import tokenizer
from jaxtune.interop.write import INDEX, carried, new_folder, write_json
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


def save_hf(
  folder: str | os.PathLike[str],
  model: ModelSpec,
  params: Params,
  source: str | os.PathLike[str] | None = None,
  labels: Sequence[str] | None = None,
  card: str | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a model as `transformers` opens it: configuration, weights, and what the source has.

  Tensors have the names of the source's, if it is the same class, and the types of the parameters.
  Adapters are merged into their weights in float32, one layer at a time. Beside the parameters
  one shard is held, and the tensor that is being made. The folder appears whole or not at all.

  Args:
    folder: to write; an earlier export there is replaced.
    model: a built-in one.
    params: its parameters.
    source: what they were loaded from, by default `model.source` where that is still there: its
      other `config.json` fields, tokenizer and other files that are not weights are kept.
    labels: names of a classifier's outputs.
    card: text of a README.md, in place of the source's.
    max_shard_bytes: of one file of weights, which holds at least one tensor.

  Raises:
    InputError: the folder holds something else, labels do not fit, or the model is a user's own.
  """
  family = family_of(model)
  virtual = [name for name in VIRTUAL if name in params]
  if virtual:
    raise InputError(
      f'the parameters hold a {virtual[0]}, which is no weight of the model that its files could '
      'hold; write the adapter with save_peft'
    )
  if model.task not in family.classes:
    raise InputError(
      f'{family.model_type} has no class for {model.task!r}; known: {", ".join(family.classes)}'
    )
  origin = _origin(family, model, source)
  kept = read_json(origin / 'config.json') if origin and origin.is_dir() else {}
  files = carried(origin) if origin and origin.is_dir() else {}
  own = _own_names(family, model, origin) if origin and kept else {}
  pieces = _pieces(family, model, ops.scaled_biases(params), own)
  written = kept | {'architectures': [family.classes[model.task]], 'model_type': family.model_type}
  written |= family.write_config(model.config) | _dtype(pieces)
  written |= _outputs(kept, model, labels)
  with new_folder(folder, files) as fresh:
    for name, file in files.items():
      (fresh / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(file, fresh / name)
    if origin is not None and not origin.is_dir():
      written |= _tokenizer_of_gguf(origin, fresh)
    _write_weights(fresh, pieces, max_shard_bytes)
    drop = {'_name_or_path', 'quantization_config', 'transformers_version'}
    write_json(fresh / 'config.json', {k: v for k, v in written.items() if k not in drop})
    if card is not None:
      (fresh / 'README.md').write_text(card, encoding='utf-8')


class _Piece(NamedTuple):
  """One layer of a leaf, or the whole: what one tensor is made of, alone or with others.

  Attributes:
    leaf: the parameter.
    place: which layer and expert of it.
    source: how the tensor holds it.
    dtype: once merged and dense.
  """

  leaf: Any
  place: tuple[int, ...]
  source: Tensors
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.source.rest) * self.dtype.itemsize


def _origin(
  family: Family, model: ModelSpec, source: str | os.PathLike[str] | None
) -> pathlib.Path | None:
  if source is None:
    if model.source is None or not pathlib.Path(model.source).exists():
      return None
    path = pathlib.Path(model.source)
  else:
    path = locate(source)
  if not path.is_dir():
    return path
  found = read_json(path / 'config.json').get('model_type')
  if found == family.model_type:
    return path
  if source is None:
    return None
  raise InputError(
    f'{path}: its model_type is {found!r}, but the model is {family.model_type!r}; give the folder '
    'that the parameters were loaded from'
  )


def _dtype(pieces: dict[str, list[_Piece]]) -> dict[str, str]:
  """The type that most of the numbers have."""
  sizes: collections.Counter[str] = collections.Counter()
  for piece in itertools.chain(*pieces.values()):
    sizes[str(piece.dtype)] += piece.nbytes
  name = sizes.most_common(1)[0][0]
  return {'dtype': name, 'torch_dtype': name}


def _own_names(family: Family, model: ModelSpec, origin: pathlib.Path) -> dict[str, str]:
  """The source's names of tensors by those without a prefix, if its head is the same."""
  try:
    if task_of(family, read_json(origin / 'config.json'), str(origin)) == model.task:
      return {bare_name(family, name): name for name in open_weights(origin)}
  except (InputError, OSError):
    pass  # another head, or the weights have gone since
  return {}


def _pieces(
  family: Family, model: ModelSpec, params: Params, own: dict[str, str]
) -> dict[str, list[_Piece]]:
  """What every tensor of the file is made of, by its name there."""
  names = family.names(model.config)
  pieces = collections.defaultdict(list)
  for path, leaf in tree.named_weights(params):
    source = tensors_of(names, path, leaf.shape)
    dtype = jax.eval_shape(_dense, leaf).dtype
    for index in np.ndindex(*source.lead):
      full = source.name(index)
      name = own.get(bare_name(family, full), full_name(family, model.task, full))
      pieces[name].append(_Piece(leaf, index, source, dtype))
  return pieces


def _write_weights(
  folder: pathlib.Path, pieces: dict[str, list[_Piece]], max_shard_bytes: int
) -> None:
  shards = list(_shards(pieces, max_shard_bytes))
  where: dict[str, str] = {}
  total = 0
  for number, names in enumerate(shards, 1):
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    file = file if shards[1:] else 'model.safetensors'
    tensors = {name: _tensor(pieces[name]) for name in names}
    safetensors.numpy.save_file(tensors, folder / file, metadata={'format': 'pt'})
    where |= dict.fromkeys(names, file)
    total += sum(tensor.nbytes for tensor in tensors.values())
    del tensors
  if shards[1:]:
    write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': where})


def _shards(pieces: dict[str, list[_Piece]], max_shard_bytes: int) -> Iterator[list[str]]:
  """Names of tensors, in runs that fit a file."""
  run: list[str] = []
  held = 0
  for name, parts in pieces.items():
    size = sum(part.nbytes for part in parts)
    if run and held + size > max_shard_bytes:
      yield run
      run, held = [], 0
    run.append(name)
    held += size
  yield run


def _dense(leaf: Any) -> jax.Array:
  return ops.materialize(adapt.merge(leaf))


def _tensor(pieces: list[_Piece]) -> np.ndarray:
  """The tensor as the file has it."""
  values = []
  for leaf, place, source, _ in pieces:
    value = np.asarray(_dense(jax.tree.map(lambda x, place=place: x[place], leaf)))
    values.append(value.swapaxes(-1, -2) if source.row.transpose else value)
  (value, *_), row, axis = values, pieces[0].source.row, pieces[0].source.out_axis
  if row.part is not None:
    parts = np.concatenate([piece.source.row.part for piece in pieces])
    value = np.take(np.concatenate(values, axis), np.argsort(parts), axis)
  return np.ascontiguousarray(value if row.shape is None else value.reshape(row.shape))


def _outputs(
  kept: dict[str, Any], model: ModelSpec, labels: Sequence[str] | None
) -> dict[str, Any]:
  outputs = model.config.outputs
  if not outputs:
    return {}
  known = kept.get('id2label') or {}
  if labels is None and len(known) == outputs:
    labels = [known[str(i)] for i in range(outputs)]
  elif labels is None:
    labels = [f'LABEL_{i}' for i in range(outputs)]
  check_labels(tuple(labels), outputs)
  named = {
    'id2label': {str(i): name for i, name in enumerate(labels)},
    'label2id': {name: i for i, name in enumerate(labels)},
  }
  if model.task == 'classification':
    named['problem_type'] = 'regression' if outputs == 1 else 'single_label_classification'
  return named


def _tokenizer_of_gguf(origin: pathlib.Path, fresh: pathlib.Path) -> dict[str, Any]:
  """Writes the tokenizer of a GGUF file; returns the ids that belong into `config.json`."""
  tok = tokenizer(origin)
  special = tok.special
  tok.encoder.save(str(fresh / 'tokenizer.json'))
  ids = {name: getattr(special, name) for name in ('bos', 'eos', 'pad')}
  named: dict[str, Any] = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  named |= {f'{k}_token': tok.encoder.id_to_token(i) for k, i in ids.items() if i is not None}
  if special.chat_template is not None:
    named['chat_template'] = special.chat_template
  write_json(fresh / 'tokenizer_config.json', named)
  return {f'{name}_token_id': i for name, i in ids.items()}
