"""LoRA on embeddings in PEFT's files.

`lora_embedding_A` is `[r, vocabulary]` and `lora_embedding_B` `[width, r]`. A head that is tied to
the embeddings has the same factors the other way round as its own `lora_A` and `lora_B`; PEFT keeps
the two the same under `ensure_weight_tying`, and without it leaves the head as it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxtune.adapt import DoRA, InputLoRA, LoRA
from jaxtune.adapt.lora_starts import since_start
from jaxtune.interop.families import family_of
from jaxtune.interop.names import bare_name, live_name
from jaxtune.interop.peft.format import PREFIX, Export, Import
from jaxtune.interop.peft.modules import Module, copies_of
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

Pair = Callable[[Module, str, str, tuple[int, int]], dict[str, np.ndarray] | None]


def tied_head(model: ModelSpec, params: Params) -> str:
  """The tensor of a head that is `embed/tokens` once more, as the family names it; '' for none."""
  copies = [row for row in copies_of(model, params) if row.ours == 'embed/tokens']
  # T5's embeddings have several names besides.
  names = {row.theirs for row in family_of(model).names(model.config) if row.ours == 'embed/tokens'}
  return next((row.theirs for row in copies if row.theirs not in names), '')


def embedding_tensors(
  export: Export, module: Module, leaf: LoRA | DoRA, dora: bool
) -> dict[str, dict[str, np.ndarray]]:
  """To the names of the embeddings and of a head that is tied to them their tensors.

  Raises:
    InputError: PEFT would compute something else.
  """
  path = module.weight[0].path
  if dora:
    raise InputError(
      f'{path!r} is an embedding: with DoRA on any weight PEFT would scale its rows; write the '
      'whole model with save_hf'
    )
  if export.model.family == 'encoder_decoder':
    raise InputError(
      f'{path!r} is shared by encoder and decoder, and PEFT would adapt it in neither; write the '
      'whole model with save_hf'
    )
  a, b = since_start(leaf)
  name = f'{PREFIX}{module.name}'
  found = {module.name: {f'{name}.lora_embedding_A': a.T, f'{name}.lora_embedding_B': b.T}}
  head = tied_head(export.model, export.params).removesuffix('.weight')
  if head and path == 'embed/tokens' and not isinstance(leaf, InputLoRA):
    head = live_name(family_of(export.model), export.model.task, f'{head}.').removesuffix('.')
    if any(f'{head}.'.startswith(f'{module}.') for module in export.whole):
      raise InputError(
        f'{path!r} has an adapter and is tied to the head, which was trained whole; train without '
        'the head (also=None), or write the whole model with save_hf'
      )
    # Factors that change nothing are zero, which the save has to see.
    a = a if b.any() else np.zeros_like(a)
    name = f'{PREFIX}{head}'
    found[head] = {f'{name}.lora_A.weight': b, f'{name}.lora_B.weight': a}
  return {
    owner: {name: np.ascontiguousarray(x) for name, x in own.items()}
    for owner, own in found.items()
  }


def read_embeddings(files: Import, pair: Pair, dora: bool) -> Params:
  """The parameters with the adapters on embeddings; `InputLoRA` where a tied head has none.

  Args:
    files: what is read.
    pair: `(module, name of A, name of B, (in, out)) -> fields` of a leaf; None without an adapter.
    dora: whether PEFT would scale rows.

  Raises:
    InputError: PEFT computes something else than any leaf.
  """
  head = bare_name(family_of(files.model), tied_head(files.model, files.params))
  head = head.removesuffix('.weight')
  factors = f'{head}.lora_A.weight', f'{head}.lora_B.weight'
  both = bool(head) and factors[0] in files.tensors
  some = next((t.name for name, t in files.tensors.items() if '.lora_embedding_' in name), None)
  if some and (dora or files.model.family == 'encoder_decoder'):
    reason = 'whose rows DoRA scales' if dora else 'which encoder and decoder share'
    raise InputError(
      f'{files.folder}: holds {some} of embeddings, {reason}; merge it with PEFT '
      '(merge_and_unload) and load the model'
    )
  if both and some is None:
    raise InputError(
      f'{files.folder}: holds an adapter of {head} alone, which is tied to the embeddings; untie '
      'them in the base (tie_word_embeddings false) and load that'
    )

  def find(module: Module, shape: tuple[int, int]) -> dict[str, np.ndarray] | None:
    found = pair(module, 'lora_embedding_A', 'lora_embedding_B', shape)
    if found is None or module.weight[0].path != 'embed/tokens' or not head:
      return found
    if both:
      a, b = (files.read(name) for name in factors)
      if not (np.array_equal(a, found['b']) and np.array_equal(b, found['a'])):
        raise InputError(
          f'{files.folder}: the adapters of {module.name} and of {head}, which is tied to it, '
          'differ; train with ensure_weight_tying'
        )
    return found

  def blank(weight: np.ndarray, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raise AssertionError('embeddings are in no stack')

  def make(leaf: Any, **found: Any) -> LoRA:
    return (InputLoRA if head and not both else LoRA)(leaf, **found)

  files = files._replace(params=files.wrapped(find, blank, make, pattern=r'^embed/tokens$'))
  return files.wrapped(find, blank, LoRA, pattern=r'^embed/(?!tokens$)')
