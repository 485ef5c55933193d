"""A fine-tuning method: parameters in, parameters out, and rules that say which of them train."""

from typing import NamedTuple

from jaxtune import tree
from jaxtune.typing import InputError, Params

HEAD = r'^head/'


class Adapted(NamedTuple):
  """What a method returns.

  Attributes:
    params: the parameters, some perhaps wrapped in weight leaves.
    rules: path rules to True (trained) or False (frozen), for `tree.partition(params, rules)`.
  """

  params: Params
  rules: tree.Rules


def full(params: Params) -> Adapted:
  """Trains every parameter."""
  return Adapted(params, ((r'', True),))


def freeze(params: Params, rules: tree.Rules) -> Adapted:
  """Trains what the rules say: `((r'encoder/', False), (r'', True))` trains all but the layers.

  Raises:
    InputError: a parameter that no rule covers, or nothing left to train.
  """
  if not any(route.value for route in tree.routing(rules, params)):
    raise InputError('the rules freeze every parameter; let at least one match with True')
  return Adapted(params, tuple(rules))


def probe(params: Params) -> Adapted:
  """Trains the head alone, on the features of the frozen body (a linear probe)."""
  if 'head' not in params:
    raise InputError(
      'a probe trains the head, and this model has none; add one with models.classifier'
    )
  return freeze(params, ((HEAD, True), (r'', False)))
