"""Update rules by name: jaxtune's own and every one of Optax, with checked hyperparameters."""

import collections.abc
import difflib
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxtune.optim.accumulated_norm import adaptive_rate
from jaxtune.optim.descent import gradient_descent, momentum
from jaxtune.optim.injection import with_hyperparameters
from jaxtune.optim.per_layer import STACKED, per_layer
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAY, decay_mask
from jaxtune.typing import InputError

OWN: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adaptive_rate': adaptive_rate,
  'gradient_descent': gradient_descent,
  'momentum': momentum,
}

# Their update of a stack differs from the updates of its layers; a test finds them out anew.
WHOLE_LEAF = frozenset(
  ('adafactor', 'fromage', 'galore', 'lamb', 'lars', 'muon', 'novograd', 'sm3')
)

DECAY_MASKS = ('mask', 'weight_decay_mask')  # what Optax's factories call the mask of the decay

# Weights of the past, in [0, 1): at 1 the present never enters and bias corrections divide by 0.
AVERAGES = re.compile(r'^((adam_)?b[123]|beta3?|momentum|rho|decay)$')
NOT_NEGATIVE = re.compile(r'(learning_rate|^eps|_eps|weight_decay|clip|^(alpha|beta|gamma|eta)$)')


def create(
  name: str,
  learning_rate: float | jax.Array,
  *,
  schedule: Callable[[jax.Array], jax.Array] | None = None,
  clip_norm: float | jax.Array | None = None,
  state_dtype: Any = jnp.float32,
  decay_rules: Sequence[tuple[str, bool]] | None = None,
  axes: Sequence[tuple[str, int]] = STACKED,
  **hyperparameters: Any,
) -> optax.GradientTransformationExtraArgs:
  r"""An update rule by name: jaxtune's own or any optimizer of Optax; `names()` lists them.

  $g \leftarrow g \cdot \min(1, c/\lVert g \rVert)$ with the norm over all leaves and $c$ =
  `clip_norm`, then the rule with the rate `learning_rate * schedule(step)`. Gradients, parameters,
  state and updates are at least `state_dtype`, also for bfloat16 parameters.

  `learning_rate`, `clip_norm` and every real-valued hyperparameter *that is named here* live as
  scalars in the state (see `hyperparameters`, `set_hyperparameters`); those left at the rule's
  default are constants, so that the rule is bit for bit Optax's. Integers, flags, `None`, names,
  tuples and functions are constants. Extra arguments of `update` (`value` for momo, say) are
  passed on.

  Args:
    name: one of `names()`.
    learning_rate: the peak rate, a finite number >= 0.
    schedule: shape of the rate, step -> multiplier in [0, 1]; see `jaxtune.optim.schedule`.
    clip_norm: largest global norm of a gradient, > 0; None does not clip.
    state_dtype: the least precise dtype of state and arithmetic.
    decay_rules: `(pattern, bool)`, which parameters decay in rules that take a mask. None is
      `DECAY`.
    axes: `(pattern, number of stacked leading axes)`; used by rules that look at a whole leaf
      (`WHOLE_LEAF`).
    **hyperparameters: the rule's own, by the names of its factory (`b1`, `weight_decay`, ...).

  Raises:
    InputError: an unknown rule or hyperparameter, a wrong type, a number out of range.
  """
  factory = _factory(name)
  known = inspect.signature(factory).parameters
  _check_names(name, known, hyperparameters)
  if schedule is not None and not callable(schedule):
    raise InputError(
      f'optimizer {name}: schedule is {schedule!r}; make one with optim.schedule(...)'
    )
  if not jnp.issubdtype(state_dtype, jnp.floating):
    raise InputError(f'optimizer {name}: state_dtype is {state_dtype!r}; give a float dtype')

  scalars: dict[str, Any] = {
    'learning_rate': _real(name, 'learning_rate', learning_rate, high=math.inf)
  }
  if clip_norm is not None:
    scalars['clip_norm'] = _real(name, 'clip_norm', clip_norm, high=math.inf)
    if not isinstance(clip_norm, jax.core.Tracer) and not np.all(np.asarray(clip_norm) > 0):
      raise InputError(
        f'optimizer {name}: clip_norm is {clip_norm!r}; give a number above 0, or None'
      )
  static: dict[str, Any] = {}
  for key, value in hyperparameters.items():
    if _is_scalar(known[key], key, value):
      scalars[key] = _real(name, key, value, high=_upper(known[key]))
    else:
      static[key] = _static(name, known[key], value)

  masks = [key for key in DECAY_MASKS if key in known]
  if masks:
    static[masks[0]] = decay_mask(DECAY if decay_rules is None else decay_rules)
  elif decay_rules is not None:
    raise InputError(
      f'optimizer {name} takes no decay_rules: it has no mask; use one that has, such as adamw'
    )

  def rule(*, clip_norm=None, **values):
    inner = factory(**values, **static)
    if name in WHOLE_LEAF:
      inner = per_layer(inner, axes)
    return inner if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), inner)

  try:
    rule(**scalars)
  except (TypeError, ValueError) as e:
    raise InputError(f'optimizer {name}: {str(e).splitlines()[0]}') from e
  dtype = jnp.promote_types(state_dtype, jnp.float32)
  return in_precision(
    with_hyperparameters(rule, scalars, schedule=schedule, dtype=dtype), state_dtype
  )


@functools.cache
def names() -> tuple[str, ...]:
  """The rules that `create` makes: jaxtune's own, then Optax's and those of `optax.contrib`."""
  return (*sorted(OWN), *sorted(set(_optax_factories()) - set(OWN)))


@functools.cache
def _optax_factories() -> dict[str, Callable[..., optax.GradientTransformation]]:
  """Functions of Optax that make an optimizer: their first argument is the learning rate."""
  found: dict[str, Callable[..., optax.GradientTransformation]] = {}
  for module in (optax.contrib, optax):
    for name, function in inspect.getmembers(module, inspect.isfunction):
      first = next(iter(inspect.signature(function).parameters), None)
      if first == 'learning_rate' and not name.startswith(('_', 'scale_by_')):
        found[name] = function
  return found


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
  factory = OWN.get(name) or _optax_factories().get(name)
  if factory is None:
    near = difflib.get_close_matches(str(name).lower(), names(), n=3, cutoff=0.5)
    hint = f'the nearest are {", ".join(near)}' if near else f'choose one of {", ".join(names())}'
    raise InputError(f'optimizer {name!r} is unknown; {hint}')
  return factory


def _check_names(name: str, known: typing.Mapping[str, inspect.Parameter], given: Any) -> None:
  allowed = sorted(set(known) - {'learning_rate', *DECAY_MASKS})
  for key in given:
    if key in DECAY_MASKS:
      raise InputError(
        f'optimizer {name}: {key} is made from path rules here; give decay_rules instead'
      )
    if key not in allowed:
      near = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
      hint = f'did you mean {near[0]!r}? ' if near else ''
      has = f'it takes {", ".join(allowed)}' if allowed else 'it takes the learning rate alone'
      raise InputError(f'optimizer {name} has no hyperparameter {key!r}; {hint}{has}')
  needed = [k for k in allowed if known[k].default is inspect.Parameter.empty and k not in given]
  if needed:
    raise InputError(f'optimizer {name} needs {", ".join(needed)}')


def _options(parameter: inspect.Parameter) -> tuple[Any, ...]:
  """The members of the parameter's annotated union."""
  return typing.get_args(parameter.annotation) or (parameter.annotation,)


def _takes_function(parameter: inspect.Parameter) -> bool:
  return any(typing.get_origin(o) is collections.abc.Callable for o in _options(parameter))


def _is_scalar(parameter: inspect.Parameter, key: str, value: Any) -> bool:
  """Whether the hyperparameter is a real number that lives in the state."""
  default = parameter.default
  if isinstance(default, bool | int | tuple):
    return False
  if value is None or callable(value):
    return isinstance(default, float) and not (
      type(None) in _options(parameter) if value is None else _takes_function(parameter)
    )
  if isinstance(default, float):
    return True
  # No default tells the type: a number is real when it is written so, or when its name says so.
  if isinstance(value, int) and not isinstance(value, bool):
    return bool(AVERAGES.match(key) or NOT_NEGATIVE.search(key))
  if not isinstance(value, float | np.floating | np.ndarray | jax.Array):
    return False
  return np.ndim(value) == 0 and jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _upper(parameter: inspect.Parameter) -> float:
  default = parameter.default
  beyond = isinstance(default, float) and default >= 1  # beta of adaptive_rate is no average
  return 1.0 if AVERAGES.match(parameter.name) and not beyond else math.inf


def _real(name: str, key: str, value: Any, *, high: float) -> Any:
  """A number in its range as float32 will hold it: b2 = 0.99999999 is exactly 1 there."""
  if isinstance(value, jax.core.Tracer):
    return value
  if isinstance(value, bool) or not isinstance(
    value, int | float | np.number | np.ndarray | jax.Array
  ):
    hint = ' (a schedule goes in schedule=)' if key == 'learning_rate' and callable(value) else ''
    raise InputError(f'optimizer {name}: {key} is {value!r}; give a number{hint}')
  with np.errstate(over='ignore'):
    rounded = np.asarray(value).astype(np.float32)
  low = 0.0 if high < math.inf or NOT_NEGATIVE.search(key) else -math.inf
  if rounded.ndim:
    raise InputError(f'optimizer {name}: {key} has shape {rounded.shape}; give one number')
  if not (np.isfinite(rounded) and low <= rounded < high):
    bounds = f'with {low:g} <= {key} < {high:g}' if high < math.inf else 'of at least 0'
    raise InputError(
      f'optimizer {name}: {key} is {value!r}; give a finite number'
      + (f' {bounds}' if low > -math.inf else '')
    )
  return value


def _static(name: str, parameter: inspect.Parameter, value: Any) -> Any:
  """A constant of the type that the parameter's default has."""
  for kind, wanted in ((bool, 'true or false'), (int, 'a whole number'), (str, 'a name')):
    if isinstance(parameter.default, kind):
      if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise InputError(f'optimizer {name}: {parameter.name} is {value!r}; give {wanted}')
      break
  if isinstance(parameter.default, tuple) and isinstance(value, int | float):
    raise InputError(f'optimizer {name}: {parameter.name} is {value!r}; give a list of numbers')
  return value
