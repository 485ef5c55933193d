"""The families that jaxtune reads and writes."""

from typing import Any

from jaxtune.interop.bert import BERT
from jaxtune.interop.llama import LLAMA
from jaxtune.interop.names import Family
from jaxtune.models import DecoderConfig, EncoderConfig, ModelSpec
from jaxtune.typing import InputError

FAMILIES = {family.model_type: family for family in (BERT, LLAMA)}


def family_named(model_type: Any, file: str) -> Family:
  """The family of that `model_type` in `config.json`.

  Raises:
    InputError: none has it.
  """
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise InputError(f'{file}: model_type is {model_type!r}; known: {", ".join(sorted(FAMILIES))}')
  return FAMILIES[model_type]


def family_of(model: ModelSpec) -> Family:
  """The family in whose files a model is written.

  Raises:
    InputError: the model is not built in.
  """
  if isinstance(model.config, EncoderConfig):
    return BERT
  if isinstance(model.config, DecoderConfig):
    return LLAMA
  raise InputError(
    f'{model.family} is a module of your own and has no names in other tools; '
    'save its parameters as a checkpoint instead'
  )
