"""Fine-tuning methods: parameters in, parameters out, and of those which train.

Every method is `params = method(key, params, select=..., ...)`; `trainable(params)` splits them.
"""

from collections.abc import Callable, Iterable
from typing import Any

from jaxtune import options
from jaxtune.adapt.adalora import AdaLoRA, Budget, adalora, orthogonality
from jaxtune.adapt.adapted import (
  HEAD,
  LINEAR,
  Adapted,
  is_adapter,
  rules_of,
  selected,
  train_also,
  trainable,
  widened,
  wrap,
)
from jaxtune.adapt.averages import interpolate, soup
from jaxtune.adapt.bottleneck import Bottleneck, bottleneck
from jaxtune.adapt.dora import DoRA, dora
from jaxtune.adapt.eva import eva
from jaxtune.adapt.ia3 import IA3, ia3
from jaxtune.adapt.input_lora import InputLoRA
from jaxtune.adapt.layers import last_layers, unfreeze_gradually
from jaxtune.adapt.loha import LoHa, loha
from jaxtune.adapt.lokr import LoKr, lokr
from jaxtune.adapt.lora import DroppedLoRA, LoRA, lora, with_key
from jaxtune.adapt.lora_starts import Residual
from jaxtune.adapt.merge import base_of, merge
from jaxtune.adapt.merge_adapters import merge_adapters
from jaxtune.adapt.p_tuning import EncodedPrompt, p_tuning
from jaxtune.adapt.partial import bitfit, freeze, full, norms, probe
from jaxtune.adapt.prefix import prefix
from jaxtune.adapt.prompt import prompt
from jaxtune.adapt.quantize import KINDS, Quantized, quantize, quantize_matrix
from jaxtune.adapt.rank_budget import adalora_budget
from jaxtune.adapt.task_vectors import TaskVector, apply_task_vectors, merge_tensors, task_vector
from jaxtune.adapt.teacher import student_and_teacher, with_teacher, without_teacher
from jaxtune.adapt.tokens import TrainableTokens, trainable_tokens
from jaxtune.adapt.toward_base import (
  Penalty,
  ewc,
  fisher,
  l2_sp,
  policy_and_reference,
  with_start,
  without_start,
)
from jaxtune.adapt.training import training_penalty, wrap_optimizer
from jaxtune.adapt.unmerge import merge_difference, unmerge
from jaxtune.adapt.vera import VeRA, vera
from jaxtune.typing import Key, Params

METHODS: dict[str, Callable[..., Adapted]] = {
  method.__name__: method
  for method in (
    full,
    freeze,
    probe,
    bitfit,
    norms,
    lora,
    dora,
    loha,
    lokr,
    adalora,
    bottleneck,
    prompt,
    p_tuning,
    prefix,
    trainable_tokens,
    last_layers,
    ia3,
    vera,
  )
}


def options_of(name: str) -> list[str]:
  """The names of a method's options.

  Raises:
    InputError: no such method.
  """
  return options.options_of(METHODS, 'method', name, 2)


def check_options(name: str, given: Iterable[str]) -> None:
  """Refuses options that the method does not have.

  Raises:
    InputError: with those that it has.
  """
  options.check_options('method', name, options_of(name), given)


def create(name: str, key: Key, params: Params, **given: Any) -> Adapted:
  """The method of that name on these parameters.

  Raises:
    InputError: no such method, or an option that it does not have.
  """
  check_options(name, given)
  return METHODS[name](key, params, **given)


__all__ = [
  'HEAD',
  'KINDS',
  'IA3',
  'LINEAR',
  'METHODS',
  'AdaLoRA',
  'Adapted',
  'Bottleneck',
  'Budget',
  'DoRA',
  'DroppedLoRA',
  'EncodedPrompt',
  'InputLoRA',
  'LoHa',
  'LoKr',
  'LoRA',
  'Penalty',
  'Quantized',
  'Residual',
  'TaskVector',
  'TrainableTokens',
  'VeRA',
  'adalora',
  'adalora_budget',
  'apply_task_vectors',
  'base_of',
  'bitfit',
  'bottleneck',
  'check_options',
  'create',
  'dora',
  'eva',
  'ewc',
  'fisher',
  'freeze',
  'full',
  'ia3',
  'interpolate',
  'is_adapter',
  'l2_sp',
  'last_layers',
  'loha',
  'lokr',
  'lora',
  'merge',
  'merge_adapters',
  'merge_difference',
  'merge_tensors',
  'norms',
  'options_of',
  'orthogonality',
  'p_tuning',
  'policy_and_reference',
  'prefix',
  'probe',
  'prompt',
  'quantize',
  'quantize_matrix',
  'rules_of',
  'selected',
  'soup',
  'student_and_teacher',
  'task_vector',
  'train_also',
  'trainable',
  'trainable_tokens',
  'training_penalty',
  'unfreeze_gradually',
  'unmerge',
  'vera',
  'widened',
  'with_key',
  'with_start',
  'with_teacher',
  'without_start',
  'without_teacher',
  'wrap',
  'wrap_optimizer',
]
