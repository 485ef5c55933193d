"""The families that jaxtune reads and writes."""

from typing import Any

from jaxtune.interop.families.bert import BERT
from jaxtune.interop.families.clip import CLIP, CLIP_VISION
from jaxtune.interop.families.distilbert import DISTILBERT
from jaxtune.interop.families.gemma import GEMMA2, GEMMA3
from jaxtune.interop.families.gpt2 import GPT2
from jaxtune.interop.families.gpt_neox import NEOX
from jaxtune.interop.families.llama import LLAMA, MISTRAL, SMOLLM3
from jaxtune.interop.families.mixtures import MIXTRAL, QWEN3_MOE
from jaxtune.interop.families.modernbert import MODERNBERT
from jaxtune.interop.families.phi3 import PHI3
from jaxtune.interop.families.qwen import QWEN2, QWEN3
from jaxtune.interop.families.roberta import ROBERTA
from jaxtune.interop.families.t5 import T5
from jaxtune.interop.families.vit import VIT
from jaxtune.interop.names import Family
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

_DECODERS = (
  LLAMA,
  MISTRAL,
  SMOLLM3,
  QWEN2,
  QWEN3,
  GEMMA2,
  GEMMA3,
  PHI3,
  GPT2,
  NEOX,
  MIXTRAL,
  QWEN3_MOE,
)
_ENCODERS = (BERT, ROBERTA, DISTILBERT, MODERNBERT)
_OTHERS = (T5, VIT, CLIP_VISION, CLIP)

FAMILIES = {family.model_type: family for family in (*_DECODERS, *_ENCODERS, *_OTHERS)}


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
  model_type = getattr(model.config, 'model_type', None)
  if model_type in FAMILIES:
    return FAMILIES[model_type]
  raise InputError(
    f'{model.family} is a module of your own and has no names in other tools; '
    'save its parameters as a checkpoint instead'
  )
