"""A whole model as a Hugging Face folder."""

import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from jaxtune import adapt, ops, tree
from jaxtune.interop.families import family_of
from jaxtune.interop.fields import read_json
from jaxtune.interop.labels import check_labels
from jaxtune.interop.names import full_name, tensors_of
from jaxtune.interop.source import locate
from jaxtune.interop.tokenizer import load_tokenizer, special_tokens
from jaxtune.interop.write import TOKENIZER, new_folder, write_json
from jaxtune.models import ModelSpec
from jaxtune.typing import Params


def save_hf(
  folder: str | os.PathLike[str],
  model: ModelSpec,
  params: Params,
  source: str | os.PathLike[str] | None = None,
  labels: Sequence[str] | None = None,
  card: str | None = None,
) -> None:
  """Writes `config.json`, `model.safetensors` and the source's tokenizer; `transformers` opens it.

  Adapters are merged into their weights in float32 first. The folder appears whole or not at all.

  Args:
    folder: to write; an earlier export there is replaced.
    model: a built-in encoder or decoder.
    params: its parameters.
    source: what they were loaded from: its other `config.json` fields and tokenizer are kept.
    labels: names of a classifier's outputs.
    card: text of a README.md.

  Raises:
    InputError: the folder holds something else, labels do not fit, or the model is a user's own.
  """
  family = family_of(model)
  names = family.names(model.config)
  origin = None if source is None else locate(source)
  with new_folder(folder) as fresh:
    tensors = {}
    for path, leaf in tree.named_weights(ops.materialize_all(adapt.merge(params))):
      where = tensors_of(names, path)
      array = np.asarray(leaf)
      for layer, name in enumerate(where.names):
        value = array[layer] if where.stacked else array
        value = np.ascontiguousarray(value.T if where.transpose else value)
        tensors[full_name(family, model.config, path, name)] = value
    safetensors.numpy.save_file(tensors, fresh / 'model.safetensors', metadata={'format': 'pt'})
    kept = read_json(origin / 'config.json') if origin and origin.is_dir() else {}
    written = kept | family.write_config(model.config)
    written['dtype'] = written['torch_dtype'] = str(params['embed']['tokens'].dtype)
    written |= _outputs(kept, model.config.outputs, labels)
    if origin is not None and origin.is_dir():
      for file in (*TOKENIZER, 'generation_config.json'):
        if (origin / file).exists():
          shutil.copyfile(origin / file, fresh / file)
    elif origin is not None:
      written |= _tokenizer_of_gguf(origin, fresh)
    drop = {'_name_or_path', 'quantization_config', 'transformers_version'}
    write_json(fresh / 'config.json', {k: v for k, v in written.items() if k not in drop})
    if card is not None:
      (fresh / 'README.md').write_text(card, encoding='utf-8')


def _outputs(kept: dict[str, Any], outputs: int, labels: Sequence[str] | None) -> dict[str, Any]:
  if not outputs:
    return {}
  known = kept.get('id2label') or {}
  if labels is None and len(known) == outputs:
    labels = [known[str(i)] for i in range(outputs)]
  elif labels is None:
    labels = [f'LABEL_{i}' for i in range(outputs)]
  check_labels(tuple(labels), outputs)
  return {
    'id2label': {str(i): name for i, name in enumerate(labels)},
    'label2id': {name: i for i, name in enumerate(labels)},
    'problem_type': 'regression' if outputs == 1 else 'single_label_classification',
  }


def _tokenizer_of_gguf(origin: pathlib.Path, fresh: pathlib.Path) -> dict[str, Any]:
  """Writes the tokenizer of a GGUF file; returns the ids that belong into `config.json`."""
  tokenizer, special = load_tokenizer(origin), special_tokens(origin)
  tokenizer.save(str(fresh / 'tokenizer.json'))
  ids = {name: getattr(special, name) for name in ('bos', 'eos', 'pad')}
  named: dict[str, Any] = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  named |= {f'{k}_token': tokenizer.id_to_token(i) for k, i in ids.items() if i is not None}
  if special.chat_template is not None:
    named['chat_template'] = special.chat_template
  write_json(fresh / 'tokenizer_config.json', named)
  return {f'{name}_token_id': i for name, i in ids.items()}
