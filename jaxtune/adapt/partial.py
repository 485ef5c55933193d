"""Methods that add nothing: some of the parameters train as they are, the others are frozen."""

from jaxtune import tree
from jaxtune.adapt.adapted import HEAD, Adapted, Select, selected, train_also
from jaxtune.typing import InputError, Key, Params


def full(key: Key, params: Params) -> Adapted:
  """Trains every parameter."""
  del key
  return Adapted(params, ((r'', True),))


def freeze(key: Key, params: Params, select: Select) -> Adapted:
  """Trains what the rules choose: `((r'^embed/', False), (r'', True))` all but the embeddings.

  Cut a stack first (`models.cut`) to choose some of its layers.

  Raises:
    InputError: a parameter that no rule covers, or nothing left to train.
  """
  return _trained(key, params, select, 'freeze')


def bitfit(key: Key, params: Params, select: Select = r'bias$', also: str | None = HEAD) -> Adapted:
  """Trains the biases alone, and a fresh head.

  Ben Zaken et al. 2021, arXiv:2106.10199.

  Raises:
    InputError: the model has no biases, as most decoders.
  """
  return _trained(key, params, select, 'bitfit', also)


def norms(
  key: Key, params: Params, select: Select = r'norm/(scale|bias)$', also: str | None = HEAD
) -> Adapted:
  """Trains the scales and biases of the norms alone, and a fresh head.

  Zhao et al. 2023, arXiv:2312.11420.

  Raises:
    InputError: the rules choose nothing.
  """
  return _trained(key, params, select, 'norms', also)


def probe(key: Key, params: Params, select: Select = HEAD) -> Adapted:
  """Trains the head alone, on the features of the frozen body (a linear probe).

  Raises:
    InputError: the model has no head.
  """
  if select == HEAD and 'head' not in params:
    raise InputError(
      'a probe trains the head, and this model has none; add one with models.classifier'
    )
  return _trained(key, params, select, 'probe')


def _trained(
  key: Key, params: Params, select: Select, method: str, also: str | None = None
) -> Adapted:
  """The chosen parameters train, and those that `also` names."""
  del key
  chosen = selected(params, select, method)
  everything = len(chosen) == len(tree.named_weights(params))
  rules: list[tuple[str, bool]] = [] if also is None else [(also, True)]
  if isinstance(select, str):
    rules.append((select, True))
  else:
    rules += [(pattern, value is not False) for pattern, value in select]
  return Adapted(params, ((r'', True),)) if everything else train_also(params, rules)
