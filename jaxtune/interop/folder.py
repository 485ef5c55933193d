"""A model in a Hugging Face folder: `config.json` and safetensors, whole or in shards."""

import dataclasses
import math
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtune import tree
from jaxtune.interop import fields
from jaxtune.interop.check import check, listed, without_copies
from jaxtune.interop.families import family_named
from jaxtune.interop.names import Family, Name, bare_name
from jaxtune.interop.tensors import Tensor, open_safetensors
from jaxtune.models import ModelSpec, build
from jaxtune.models.spec import Task, no_head
from jaxtune.typing import InputError, Params

# How the classes that `architectures` names end, by what their head does.
_HEADS: dict[str, Task] = {
  'ForSequenceClassification': 'classification',
  'ForImageClassification': 'classification',
  'ForTokenClassification': 'token_classification',
  'ForMaskedLM': 'masked_lm',
  'ForCausalLM': 'causal_lm',
  'LMHeadModel': 'causal_lm',
  'ForConditionalGeneration': 'seq2seq',
}
# Fields by which a table of names grows.
_DEPTH = re.compile(r'(^n|num)_(\w+_)?layers?$')


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
  names: Sequence[Name]
  tensors: dict[str, Tensor]


def open_folder(folder: pathlib.Path) -> Checkpoint:
  """Reads the configuration and the headers, and checks them against each other.

  Raises:
    InputError: whatever keeps the folder from being read whole and right.
  """
  file = folder / 'config.json'
  if not file.exists():
    raise InputError(f'{folder}: has no config.json; give the folder of a Hugging Face model')
  raw = fields.read_json(file)
  family = family_named(raw.get('model_type'), str(file))
  if raw.get('quantization_config'):
    raise InputError(
      f'{file}: has a quantization_config; take a checkpoint that is not quantized, or a GGUF file'
    )
  tensors = _bare(family, open_weights(folder))
  _check_depth(raw, file, len(tensors))
  task = task_of(family, raw, str(file))
  body = family.read_config(raw, str(file))
  if task == 'seq2seq' and _differ(family, body, tensors):
    body = dataclasses.replace(body, tied=False)
  config = dataclasses.replace(body, **_head(task, raw, str(file)))
  model = build(config)
  wanted = model.shapes()
  if task == 'features' and model.task != task:
    model = dataclasses.replace(model, task=task, head=no_head)
    wanted = {key: value for key, value in wanted.items() if key != 'head'}
  if any(name.startswith('pooler.') for name in tensors):
    # Under another head it is kept for the classifier that may be made of the model.
    wanted = {k: v for k, v in build(body).shapes().items() if k == 'pooler'} | wanted
  elif task != 'classification':
    wanted = {key: value for key, value in wanted.items() if key != 'pooler'}
  _check_size(wanted, file, tensors)
  names = [name._replace(theirs=bare_name(family, name.theirs)) for name in family.names(config)]
  if getattr(config, 'tied', False) and 'dense' not in wanted.get('head', {}):
    names += [Name('embed/tokens', n.theirs) for n in names if n.ours == 'head/dense']
  tensors = without_copies(wanted, names, tensors)
  _account(family, folder, raw, tensors, check(wanted, names, tensors))
  return Checkpoint(model, wanted, names, tensors)


def _differ(family: Family, config: Any, tensors: dict[str, Tensor]) -> bool:
  """Whether the head is not the embedding: transformers 5 calls all heads of T5 tied."""
  names = {name.ours: bare_name(family, name.theirs) for name in reversed(family.names(config))}
  embedding, head = (tensors.get(names[ours]) for ours in ('embed/tokens', 'head/dense'))
  return embedding is not None and head is not None and not head.same(embedding)


def task_of(family: Family, raw: dict[str, Any], file: str) -> Task:
  """What the head of the class in `architectures` does; a language model where none is named.

  Raises:
    InputError: the field is malformed, or the family has no such head here.
  """
  named = raw.get('architectures') or []
  if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
    raise InputError(f'{file}: architectures is {named!r}; it must be a list of class names')
  if not named:
    tasks: tuple[Task, ...] = ('causal_lm', 'seq2seq', 'features')
    return next(task for task in tasks if task in family.classes)
  known: dict[str, Any] = {name: task for task, name in family.classes.items()}
  ends = (task for end, task in _HEADS.items() if named[0].endswith(end))
  task: Task = known.get(named[0]) or next(ends, None) or 'features'
  if task not in family.classes:
    raise InputError(
      f'{file}: architectures is {named[0]!r}, whose head jaxtune does not have for '
      f'{family.model_type}; known: {", ".join(known)}'
    )
  return task


def open_weights(folder: pathlib.Path) -> dict[str, Tensor]:
  """The tensors of a folder by the file's own names.

  Raises:
    InputError: there are none, or a file is damaged, or the shards are not what the index says.
  """
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
  where = fields.read_json(index).get('weight_map')
  if not isinstance(where, dict) or not where:
    raise InputError(f'{index}: has no weight_map; download it again')
  for name, shard in where.items():
    if not isinstance(shard, str):
      raise InputError(f'{index}: puts {name} into {shard!r}, which is no file; download it again')
  shards = {}
  for shard in sorted(set(where.values())):
    path = folder / shard
    if pathlib.PurePath(shard).name != shard or not path.is_file():
      raise InputError(f'{index}: names the shard {shard!r}, which is not in the folder; add it')
    shards[shard] = open_safetensors(path)
  for name, shard in where.items():
    if name not in shards[shard]:
      raise InputError(f'{folder / shard}: lacks the tensor {name}, which the index puts there')
  # What the index does not name is accounted for like any other tensor.
  unlisted = {name: t for tensors in shards.values() for name, t in tensors.items()}
  return unlisted | {name: shards[shard][name] for name, shard in where.items()}


def _bare(family: Family, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
  named: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    other = named.setdefault(bare_name(family, name), tensor)
    if other is not tensor:
      raise InputError(
        f'{tensor.file}: holds both {other.name} and {name}, which are the same parameter; '
        'take a whole checkpoint of one model'
      )
  return named


def _check_depth(raw: dict[str, Any], file: pathlib.Path, tensors: int) -> None:
  """A table of names for more layers than there are tensors would only fill the memory."""
  for key, value in raw.items():
    if _DEPTH.search(key) and isinstance(value, int) and value > tensors:
      raise InputError(
        f'{file}: {key} is {value}, but the weights are {tensors} tensors; '
        'take the config that belongs to the weights'
      )


def _check_size(wanted: Params, file: pathlib.Path, tensors: dict[str, Tensor]) -> None:
  """Sizes that are out of all proportion would fill the memory before shapes are compared."""
  entries = sum(math.prod(tensor.shape) for tensor in tensors.values())
  count = tree.count(wanted)
  if count > 16 * entries + 2**20:
    raise InputError(
      f'{file}: makes a model of {count:,} parameters, but the weights are {entries:,} numbers; '
      'take the config that belongs to the weights'
    )


def _head(task: str, raw: dict[str, Any], file: str) -> dict[str, Any]:
  """The fields of a configuration that say which head it has."""
  if task == 'masked_lm':
    return {'masked_lm': True}
  if task not in ('classification', 'token_classification'):
    return {}
  labels = raw.get('id2label') or {}
  if not isinstance(labels, dict):
    raise InputError(f'{file}: id2label is {labels!r}; it must map "0", "1", ... to names')
  outputs = len(labels) or fields.integer(raw, file, 'num_labels', 2)
  return {'outputs': outputs} | ({'each_token': True} if task == 'token_classification' else {})


def _account(
  family: Family,
  folder: pathlib.Path,
  raw: dict[str, Any],
  tensors: dict[str, Tensor],
  used: set[str],
) -> None:
  """Nothing in the file may be left out without a reason that the user is told."""
  left = {name for name in tensors if name not in used and not re.search(family.buffers, name)}
  out = sorted(name for name in left if re.search(family.left_out, name))
  if out:
    warnings.warn(
      f'{folder}: {len(out)} tensors are left out, for which jaxtune has no use in this model '
      f'({", ".join(out[:3])}{", ..." if out[3:] else ""})',
      stacklevel=2,
    )
  left -= set(out)
  if left:
    raise InputError(
      f'{folder}: holds tensors that {family.model_type} with architectures '
      f'{raw.get("architectures")} does not have in jaxtune ({listed(left, used)}); '
      'choose another checkpoint'
    )
