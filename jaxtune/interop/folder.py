"""A model in a Hugging Face folder: `config.json` and safetensors, whole or in shards."""

import pathlib
import re
import warnings
from typing import Any, NamedTuple

import numpy as np

from jaxtune.interop.families import family_named
from jaxtune.interop.fields import integer, read_json
from jaxtune.interop.names import Family, bare_name
from jaxtune.interop.tensors import Tensor, check, open_safetensors
from jaxtune.models import ModelSpec, build
from jaxtune.typing import InputError, Params

# Buffers that old checkpoints carry and that follow from the configuration.
_HARMLESS = re.compile(r'(position_ids|rotary_emb\.inv_freq)$')


class Checkpoint(NamedTuple):
  """A model whose weights are still in their file.

  Attributes:
    model: built from the configuration.
    wanted: the parameters to fill, as shapes.
    names: the table of tensor names.
    tensors: by the table's names.
  """

  model: ModelSpec
  wanted: Params
  names: Any
  tensors: dict[str, Tensor]


def open_folder(folder: pathlib.Path) -> Checkpoint:
  """Reads the configuration and the headers, and checks them against each other.

  Raises:
    InputError: whatever keeps the folder from being read whole and right.
  """
  file = folder / 'config.json'
  if not file.exists():
    raise InputError(f'{folder}: has no config.json; give the folder of a Hugging Face model')
  raw = read_json(file)
  family = family_named(raw.get('model_type'), str(file))
  if raw.get('quantization_config'):
    raise InputError(
      f'{file}: has a quantization_config; take a checkpoint that is not quantized, or a GGUF file'
    )
  config = family.read_config(raw, str(file), outputs_of(raw, str(file)))
  tensors = {bare_name(family, name): t for name, t in _open_weights(folder).items()}
  model = build(config)
  wanted = model.shapes()
  if not config.outputs and 'pooler' in wanted and 'pooler.dense.weight' not in tensors:
    wanted = {key: value for key, value in wanted.items() if key != 'pooler'}
  names = family.names(config)
  used = check(wanted, names, tensors)
  _account(family, folder, raw, tensors, used)
  return Checkpoint(model, wanted, names, tensors)


def tensor_names(folder: pathlib.Path, family: Family) -> set[str]:
  """The names, as in the family's table, of the tensors that a folder holds."""
  return {bare_name(family, name) for name in _open_weights(folder)}


def outputs_of(raw: dict[str, Any], file: str) -> int:
  """The outputs of the classifier that `config.json` declares; 0 for none."""
  architectures = raw.get('architectures') or []
  if not any(str(name).endswith('ForSequenceClassification') for name in architectures):
    return 0
  return len(raw.get('id2label') or {}) or integer(raw, file, 'num_labels', 2)


def _open_weights(folder: pathlib.Path) -> dict[str, Tensor]:
  whole, index = folder / 'model.safetensors', folder / 'model.safetensors.index.json'
  if whole.exists():
    return open_safetensors(whole)
  if index.exists():
    return _open_shards(folder, index)
  pickles = sorted(p.name for p in folder.iterdir() if p.suffix in ('.bin', '.pt', '.pth', '.ckpt'))
  if pickles:
    raise InputError(
      f'{folder}: has its weights only as pickle ({pickles[0]}), which can run code when it is '
      'read; save it with transformers (model.save_pretrained writes safetensors), or take a GGUF'
    )
  raise InputError(f'{folder}: has no model.safetensors and no model.safetensors.index.json')


def _open_shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Tensor]:
  where = read_json(index).get('weight_map')
  if not isinstance(where, dict) or not where:
    raise InputError(f'{index}: has no weight_map; download it again')
  shards = {}
  for shard in sorted({str(name) for name in where.values()}):
    path = folder / shard
    if pathlib.PurePath(shard).name != shard or not path.exists():
      raise InputError(f'{index}: names the shard {shard!r}, which is not in the folder; add it')
    shards[shard] = open_safetensors(path)
  tensors = {}
  for name, shard in where.items():
    if name not in shards[shard]:
      raise InputError(f'{folder / shard}: lacks the tensor {name}, which the index puts there')
    tensors[name] = shards[shard][name]
  return tensors


def _account(
  family: Family,
  folder: pathlib.Path,
  raw: dict[str, Any],
  tensors: dict[str, Tensor],
  used: set[str],
) -> None:
  """Nothing in the file may be left out without a reason that the user is told."""
  left = {name for name in tensors if name not in used and not _HARMLESS.search(name)}
  if family.model_type == 'llama' and raw.get('tie_word_embeddings') and 'lm_head.weight' in left:
    left.remove('lm_head.weight')
    head, embedding = tensors['lm_head.weight'], tensors['embed_tokens.weight']
    if head.shape != embedding.shape or not np.array_equal(head.read(), embedding.read()):
      raise InputError(
        f'{head.file}: lm_head.weight differs from embed_tokens.weight, but config.json ties them; '
        'set tie_word_embeddings to false'
      )
  pretraining = {name for name in left if family.model_type == 'bert' and name.startswith('cls.')}
  if pretraining:
    warnings.warn(
      f'{folder}: {len(pretraining)} tensors of the pretraining head (cls.*) are left out; '
      'jaxtune has no use for them',
      stacklevel=2,
    )
  left -= pretraining
  if left:
    some = ', '.join(sorted(left)[:3]) + (f' and {len(left) - 3} more' if len(left) > 3 else '')
    raise InputError(
      f'{folder}: holds tensors that {family.model_type} with architectures '
      f'{raw.get("architectures")} does not have in jaxtune ({some}); choose another checkpoint'
    )
