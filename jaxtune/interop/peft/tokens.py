"""Trained tokens in PEFT's files: an adapter of their own, or beside LoRA.

`trainable_tokens_delta` `[N, D]` holds, whatever its name says, the rows themselves, in the order
of `token_indices` (beside LoRA: of `trainable_token_indices`). A head that is tied to the
embeddings takes part, there as here; alone, PEFT then saves the rows once for every module that
shares them.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxtune import ops, tree
from jaxtune.adapt import TrainableTokens
from jaxtune.adapt.tokens import check_tokens
from jaxtune.interop.families import family_of
from jaxtune.interop.names import live_name
from jaxtune.interop.peft.format import PREFIX, Export, Format, Import, Written
from jaxtune.interop.peft.lora_embedding import tied_head
from jaxtune.typing import InputError, Params

_ROWS = 'trainable_tokens_delta'
_WRAPPER = 'token_adapter.'  # in the names of tensors beside LoRA


def is_tokens(leaf: Any) -> bool:
  return isinstance(leaf, TrainableTokens)


def _found(export: Export) -> tuple[list[int], np.ndarray, list[str]] | None:
  """`(ids, rows, names of the modules that share them)`; the embedding's own name is the first.

  Raises:
    InputError: trained rows of what is not the embedding of tokens, or that PEFT would not use.
  """
  leaves = {path: leaf for path, leaf in tree.named_weights(export.params) if is_tokens(leaf)}
  if not leaves:
    return None
  other = next((path for path in leaves if path != 'embed/tokens'), None)
  if other:
    raise InputError(
      f'{other!r} has trained rows, and PEFT has them of tokens only; write the whole model with '
      'save_hf'
    )
  model, family = export.model, family_of(export.model)
  head = tied_head(model, export.params)
  if model.family == 'encoder_decoder' and not head:
    raise InputError(
      "'embed/tokens' is shared by encoder and decoder, and with an untied head PEFT would train "
      'it in neither; write the whole model with save_hf'
    )
  rows = [row.theirs for row in family.names(model.config) if row.ours == 'embed/tokens']
  names = [live_name(family, model.task, name) for name in (*rows, head) if name]
  leaf = leaves['embed/tokens']
  ids = [int(i) for i in np.asarray(leaf.ids)]
  return ids, np.asarray(leaf.rows, np.float32), [name.removesuffix('.weight') for name in names]


def tokens_beside(export: Export) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The tensors of trained tokens in the file of another adapter, and the fields of its config."""
  found = _found(export)
  if found is None:
    return {}, {}
  ids, rows, names = found
  return {f'{PREFIX}{names[0]}.{_WRAPPER}{_ROWS}': rows}, {'trainable_token_indices': ids}


def read_tokens_beside(files: Import) -> Params:
  """The parameters with the trained tokens that an adapter of another kind has beside it."""
  tokens = files.config.get('trainable_token_indices')
  if not tokens:
    return files.params
  if isinstance(tokens, dict):
    name = files.full.get(f'{_embedding(files)}.{_WRAPPER}{_ROWS}', '')
    name = name.removesuffix(f'.{_WRAPPER}{_ROWS}')
    at = next((key for key in tokens if f'.{name}'.endswith(f'.{key}')), None)
    if at is None:
      raise InputError(
        f'{files.file}: trainable_token_indices names {", ".join(tokens)}, and the adapter has '
        f'rows of {name or "none"}; take the base it was made for'
      )
    tokens = tokens[at]
  return _read_rows(files, tokens, _WRAPPER)


def _embedding(files: Import) -> str:
  """The name of the module of `embed/tokens`."""
  for module in files.modules.values():
    if any(piece.path == 'embed/tokens' for piece in module.weight):
      return module.name
  raise InputError(f'{files.folder}: trains tokens, and {files.model.family} has no embedding')


def _read_rows(files: Import, tokens: Any, wrapper: str) -> Params:
  owner = _embedding(files)
  base = files.params['embed']['tokens']
  ids = check_tokens(tokens, base.shape[0], files.file)
  rows = files.read(f'{owner}.{wrapper}{_ROWS}', (len(ids), base.shape[1]))
  for name in files.tensors:
    at = name.removesuffix(f'.{wrapper}{_ROWS}')
    if at in (name, owner):
      continue
    if at in files.modules or not np.array_equal(files.read(name), rows):
      raise InputError(
        f'{files.folder}: holds trained tokens of {at}, which is not the embedding; merge it with '
        'PEFT (merge_and_unload) and load the model'
      )
    files.used.add(f'{at}.{wrapper}weight')
  whole = f'{owner}.{wrapper}weight'
  if wrapper and whole in files.tensors:  # PEFT saves a table that is not as long as the base's
    base = jnp.asarray(files.read(whole, base.shape), base.dtype)
  order = np.argsort(ids)
  leaf = TrainableTokens(base, jnp.asarray(rows[order]), jnp.asarray(ids[order]))
  return tree.map_weights(lambda path, x: leaf if path == 'embed/tokens' else x, files.params)


def _write(export: Export) -> Written:
  found = _found(export)
  assert found is not None
  ids, rows, names = found
  base = ops.take(export.params['embed']['tokens'].base, jnp.asarray(ids))
  if np.array_equal(jnp.asarray(rows, base.dtype), base):
    raise InputError('the adapter changes nothing; train before you export it')
  tensors = {f'{PREFIX}{name}.{_ROWS}': rows for name in names}
  # A whole name, as PEFT has it: where it finds `embed_tokens` in a list, it warns of tied heads.
  config = {'target_modules': names[0], 'token_indices': ids, 'init_weights': True}
  return Written(tensors, set(), config)


TOKENS = Format(
  peft_type='TRAINABLE_TOKENS',
  holds=lambda path, leaf, trains: is_tokens(leaf),
  write=_write,
  read=lambda files: _read_rows(files, files.config.get('token_indices') or [], ''),
  trained=r'/rows$',
  moves=lambda name, values: name.endswith(_ROWS),
  known=frozenset(('token_indices', 'init_weights')),
  saves=False,
)
