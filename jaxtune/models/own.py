"""A user's own Flax module behind the same wall."""

from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from jaxtune import ops
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Key, Params


def _same(params: Params, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  del params, mask
  return features


def from_linen(module: nn.Module, *example: Any) -> ModelSpec:
  """A Linen module as a model; `features` calls it, `head` hands its output on.

  Weight leaves are made dense where the module is called, inside the step, so every method that
  is a function of its weights works on it.

  Args:
    module: the module; `key` is passed to it as the `dropout` stream.
    *example: inputs that `module.init` needs, for their shapes only.

  Raises:
    InputError: (from init) the module keeps collections other than `params`.
  """

  def init(key: Key) -> Params:
    variables = module.init(key, *example)
    extra = sorted(set(variables) - {'params'})
    if extra:
      raise InputError(
        f'{type(module).__name__} keeps {", ".join(extra)} beside its params; '
        'a train step that is a pure function of params cannot carry them'
      )
    return variables['params']

  def features(params: Params, *inputs: Any, key: Key | None = None, **options: Any) -> Any:
    rngs = None if key is None else {'dropout': key}
    dense = {'params': ops.materialize_all(params)}
    return module.apply(dense, *(i for i in inputs if i is not None), rngs=rngs, **options)

  return ModelSpec(type(module).__name__, module, 'features', init, features, _same)


def from_nnx(module: nnx.Module) -> tuple[ModelSpec, Params]:
  """An NNX module as a model and its current parameters as a plain dict.

  The module is split once; everything but its `nnx.Param`s (random streams, statistics) stays as
  it is at that moment.
  """
  graph, state, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
  params = nnx.to_pure_dict(state)

  def features(params: Params, *inputs: Any, key: Key | None = None, **options: Any) -> jax.Array:
    del key
    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, ops.materialize_all(params))
    return nnx.merge(graph, filled, rest)(*(i for i in inputs if i is not None), **options)

  spec = ModelSpec(type(module).__name__, module, 'features', lambda key: params, features, _same)
  return spec, params
