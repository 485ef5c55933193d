"""A user's own Flax module behind the same wall."""

import functools
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from jaxtune import ops
from jaxtune.models.spec import ModelSpec, no_head
from jaxtune.typing import InputError, Key, Params

if TYPE_CHECKING:
  from flax import nnx


def _call(function: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
  """Leaves out what is None: a user's module need not know of masks, positions and segments."""
  given = (value for value in inputs if value is not None)
  return function(*given, **{name: value for name, value in options.items() if value is not None})


def _stateful(module: Any, extra: list[str]) -> str:
  return (
    f'{type(module).__name__} keeps {", ".join(extra)} beside its parameters; '
    'a train step that is a pure function of the parameters cannot carry them'
  )


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
      raise InputError(_stateful(module, extra))
    return variables['params']

  def features(params: Params, *inputs: Any, key: Key | None = None, **options: Any) -> Any:
    rngs = None if key is None else {'dropout': key}
    dense = {'params': ops.materialize_all(params)}
    return _call(functools.partial(module.apply, dense, rngs=rngs), inputs, options)

  return ModelSpec(type(module).__name__, module, 'features', init, features, no_head)


def from_nnx(module: 'nnx.Module') -> tuple[ModelSpec, Params]:
  """An NNX module as a model and its current parameters as a plain dict.

  The module is split once. With a `key` a copy of it runs in `train()` mode with its random streams
  seeded from the key, without one in `eval()` mode.

  Raises:
    InputError: the module keeps variables that are neither `nnx.Param` nor random streams.
  """
  from flax import nnx  # a fifth of a second that no built-in model needs

  graph, state, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)  # type: ignore[misc]
  extra = sorted({type(variable).__name__ for _, variable in nnx.to_flat_state(rest)})
  if extra:
    raise InputError(_stateful(module, extra))
  params = nnx.to_pure_dict(state)

  def features(params: Params, *inputs: Any, key: Key | None = None, **options: Any) -> jax.Array:
    filled, seeded = jax.tree.map(lambda x: x, (state, streams))  # Flax writes into variables
    nnx.replace_by_pure_dict(filled, ops.materialize_all(params))
    copy = nnx.merge(graph, filled, seeded)
    if key is None:
      copy.eval()
    else:
      copy.train()
      nnx.reseed(copy, default=key, dropout=key)
    return _call(copy, inputs, options)

  spec = ModelSpec(type(module).__name__, module, 'features', lambda key: params, features, no_head)
  return spec, params
