"""Objectives by the name that a configuration gives them."""

from collections.abc import Callable, Iterable
from typing import Any

from jaxtune import options
from jaxtune.losses.bco import bco
from jaxtune.losses.causal_lm import causal_lm
from jaxtune.losses.classification import classification
from jaxtune.losses.cosine_similarity import cosent, cosine_similarity
from jaxtune.losses.cpo import cpo
from jaxtune.losses.distillation import distillation
from jaxtune.losses.dpo import dpo
from jaxtune.losses.grpo import grpo
from jaxtune.losses.info_nce import info_nce
from jaxtune.losses.kto import kto
from jaxtune.losses.loss import Objective
from jaxtune.losses.masked_lm import masked_lm
from jaxtune.losses.mean_squared_error import huber, mean_squared_error
from jaxtune.losses.multi_label import multi_label
from jaxtune.losses.orpo import orpo
from jaxtune.losses.reward import reward
from jaxtune.losses.rloo import rloo
from jaxtune.losses.simpo import simpo
from jaxtune.losses.token_classification import token_classification
from jaxtune.losses.triplet import triplet

# Each is `(model, **options) -> Objective`.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
  objective.__name__: objective
  for objective in (
    causal_lm,
    masked_lm,
    classification,
    multi_label,
    token_classification,
    mean_squared_error,
    huber,
    dpo,
    simpo,
    cpo,
    orpo,
    kto,
    bco,
    reward,
    grpo,
    rloo,
    info_nce,
    triplet,
    cosine_similarity,
    cosent,
    distillation,
  )
}


def options_of(name: str) -> list[str]:
  """The names of an objective's options.

  Raises:
    InputError: no such objective.
  """
  return options.options_of(OBJECTIVES, 'objective', name, 1)


def check_options(name: str, given: Iterable[str]) -> None:
  """Refuses options that the objective does not have.

  Raises:
    InputError: with those that it has.
  """
  options.check_options('objective', name, options_of(name), given)


def create(name: str, model: Any, **given: Any) -> Objective:
  """The objective of that name for a model.

  Raises:
    InputError: no such objective, or an option that it does not have or cannot use.
  """
  check_options(name, given)
  return OBJECTIVES[name](model, **given)
