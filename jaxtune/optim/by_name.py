"""Update rules by name: jaxtune's own and every one of Optax, with checked hyperparameters."""

import collections.abc
import difflib
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxtune.optim.accumulated_norm import adagrad_norm, adaptive_rate
from jaxtune.optim.blockwise import adam_mini
from jaxtune.optim.cautious import cautious_adamw, cautious_lion
from jaxtune.optim.descent import gradient_descent, momentum
from jaxtune.optim.grokfast import grokfast_adamw
from jaxtune.optim.hyperball import adam_h, muon_h, soap_h
from jaxtune.optim.injection import with_hyperparameters
from jaxtune.optim.kron import kron
from jaxtune.optim.lora_rite import lora_rite
from jaxtune.optim.mars import mars
from jaxtune.optim.multipliers import lora_plus
from jaxtune.optim.muon import muon
from jaxtune.optim.normuon import normuon
from jaxtune.optim.per_layer import STACKED, per_layer
from jaxtune.optim.precision import in_precision
from jaxtune.optim.qk_clip import muonclip
from jaxtune.optim.quantize import adamw_8bit
from jaxtune.optim.riemannian_lora import riemannian_lora
from jaxtune.optim.scion import scion
from jaxtune.optim.shampoo import shampoo
from jaxtune.optim.soap import soap
from jaxtune.optim.subspace import apollo, galore
from jaxtune.optim.tables import DECAY, decay_mask
from jaxtune.typing import InputError

OWN: dict[str, Callable[..., optax.GradientTransformation]] = {
  rule.__name__: rule
  for rule in (
    *(gradient_descent, momentum, adaptive_rate, adagrad_norm),
    *(muon, normuon, muonclip, scion, soap, shampoo, kron, galore, apollo),
    *(adam_h, muon_h, soap_h, cautious_adamw, cautious_lion, mars, grokfast_adamw),
    *(adam_mini, adamw_8bit, lora_plus, riemannian_lora, lora_rite),
  )
}

# Optax's rules whose update of a stack differs from the updates of its layers; a test finds them
# out anew. Rules of our own know the axes themselves.
WHOLE_LEAF = frozenset(('adafactor', 'fromage', 'lamb', 'lars', 'novograd', 'sm3'))

DECAY_MASKS = ('mask', 'weight_decay_mask')  # what Optax's factories call the mask of the decay


class Range(NamedTuple):
  """`low <= x < high`, or `low < x` where it is open."""

  low: float = -math.inf
  high: float = math.inf
  open: bool = False


# The first pattern found in 'rule.hyperparameter' gives its range. Weights of the past end below 1,
# where the present would never enter and bias corrections would divide by 0.
RANGES = tuple(
  (re.compile(pattern), limits)
  for pattern, limits in (
    (r'^(adaptive_rate|optimistic_\w+)\.beta$', Range(0.0)),
    (
      r'\.(((adam|shampoo)_)?b(eta)?[123]?|momentum|rho|decay)$|^grokfast_adamw\.alpha$',
      Range(0.0, 1.0),
    ),
    (r'\.(b0|clip|clip_norm|threshold)$', Range(0.0, open=True)),
    (r'^apollo\.gamma$', Range(1.0)),
    (r'learning_rate|precond_lr|\.eps|_eps|weight_decay|clip|scale$', Range(0.0)),
    (r'\.(alpha|beta|gamma|delta|eta|lamb|ratio)$', Range(0.0)),
  )
)


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
  make = factory(name)
  known = inspect.signature(make).parameters
  _check_names(name, known, hyperparameters)
  if schedule is not None and not callable(schedule):
    raise InputError(
      f'optimizer {name}: schedule is {schedule!r}; make one with optim.schedule(...)'
    )
  if not jnp.issubdtype(state_dtype, jnp.floating):
    raise InputError(f'optimizer {name}: state_dtype is {state_dtype!r}; give a float dtype')

  scalars: dict[str, Any] = {'learning_rate': _real(name, 'learning_rate', learning_rate)}
  if clip_norm is not None:
    scalars['clip_norm'] = _real(name, 'clip_norm', clip_norm)
  static: dict[str, Any] = {}
  for key, value in hyperparameters.items():
    if _is_scalar(name, known[key], value):
      scalars[key] = _real(name, key, value)
    else:
      static[key] = _static(name, known[key], value)

  masks = [key for key in DECAY_MASKS if key in known]
  if masks:
    static[masks[0]] = decay_mask(DECAY if decay_rules is None else decay_rules)
  elif decay_rules is not None:
    raise InputError(
      f'optimizer {name} takes no decay_rules: it has no mask; use one that has, such as adamw'
    )

  if 'axes' in known:
    static['axes'] = axes

  def rule(*, clip_norm=None, **values):
    inner = make(**values, **static)
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


def factory(name: str) -> Callable[..., optax.GradientTransformation]:
  """The function that makes a rule: jaxtune's own, or Optax's of that name.

  Raises:
    InputError: an unknown name, with the nearest known ones.
  """
  found = OWN.get(name) or _optax_factories().get(name)
  if found is None:
    near = difflib.get_close_matches(str(name).lower(), names(), n=3, cutoff=0.5)
    hint = f'the nearest are {", ".join(near)}' if near else f'choose one of {", ".join(names())}'
    raise InputError(f'optimizer {name!r} is unknown; {hint}')
  return found


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


def _is_scalar(name: str, parameter: inspect.Parameter, value: Any) -> bool:
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
    return _range(name, parameter.name) != Range()
  if not isinstance(value, float | np.floating | np.ndarray | jax.Array):
    return False
  return np.ndim(value) == 0 and jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _range(name: str, key: str) -> Range:
  return next((limits for at, limits in RANGES if at.search(f'{name}.{key}')), Range())


def _real(name: str, key: str, value: Any) -> Any:
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
  if rounded.ndim:
    raise InputError(f'optimizer {name}: {key} has shape {rounded.shape}; give one number')
  low, high, is_open = _range(name, key)
  if not (np.isfinite(rounded) and low <= rounded < high and not (is_open and rounded == low)):
    bounds = f' above {low:g}' if is_open else f' of at least {low:g}'
    if high < math.inf:
      bounds = f' with {low:g} <= {key} < {high:g}'
    raise InputError(
      f'optimizer {name}: {key} is {value!r}; give a finite number'
      + (bounds if low > -math.inf else '')
    )
  return value


def _static(name: str, parameter: inspect.Parameter, value: Any) -> Any:
  """A constant of the type that the parameter's default has."""
  for kind, wanted in ((bool, 'true or false'), (int, 'a whole number'), (str, 'a name')):
    if isinstance(parameter.default, kind) and _options(parameter) == (kind,):
      if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise InputError(f'optimizer {name}: {parameter.name} is {value!r}; give {wanted}')
      break
  if isinstance(parameter.default, tuple) and isinstance(value, int | float):
    raise InputError(f'optimizer {name}: {parameter.name} is {value!r}; give a list of numbers')
  return value
