"""Training by depth: the last layers alone, or layer after layer from the top."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune import tree
from jaxtune.adapt.adapted import HEAD, Adapted, is_adapter, train_also, trainable
from jaxtune.optim.multipliers import LAYERS
from jaxtune.optim.tables import EMBEDDINGS
from jaxtune.typing import InputError, Key, Params

_ABOVE = r'^(({stack}_)?norm|pooler|projection)/'  # what a model has between its layers and a head


def last_layers(key: Key, params: Params, layers: int = 2, *, also: str | None = HEAD) -> Adapted:
  """Trains the last layers, the norm and pooler behind them, and a fresh head.

  The stack is cut in front of them, so that below the cut nothing is differentiated, no activations
  are kept, and no optimizer state is held: `layers / L` of the cost of the backward pass. Of an
  encoder-decoder these are the last layers of the decoder; the encoder stays as it is.

  Other methods go on top of it (`adapt.lora` on the result trains the adapters in place of the
  matrices that they are on), not under it: their rules name the stack as it was.

  Args:
    key: unused.
    params: the parameters of the base.
    layers: how many train, from 1 to all.
    also: regular expression over parameters to train besides: by default a fresh head. None for
      nothing, as for a language model whose untied head is pretrained.

  Raises:
    InputError: no stack of layers, fewer layers than are to train, or an adapter on them.
  """
  del key
  name = next((name for name in ('decoder', 'encoder') if _is_stack(params.get(name))), None)
  if name is None:
    raise InputError(
      'last_layers: the parameters have no stack of layers; name what trains with freeze'
    )
  depth = tree.bounds(tree.segments(params[name])[-1])[1]
  if not 1 <= layers <= depth:
    raise InputError(
      f'last_layers: layers is {layers}, but the {name} has {depth}; choose from 1 to {depth}'
    )
  first = depth - layers
  made: Params = {**params, name: tree.cut(params[name], first)}
  chosen = [segment for segment in made[name] if tree.bounds(segment)[0] >= first]
  for segment in chosen:
    for path, leaf in tree.named_weights(made[name][segment]):
      if is_adapter(leaf):
        raise InputError(
          f'last_layers: {name}/{segment}/{path} is a {type(leaf).__name__} already; apply '
          'last_layers first and the other method to what it returns'
        )
  if isinstance(params, Adapted):
    made = Adapted(made, params.rules)
    if tree.count(trainable(made)[0]) != tree.count(trainable(params)[0]):
      raise InputError(
        'last_layers: rules of an earlier method name segments of the stack that are cut here; '
        'apply last_layers first'
      )
  rules = [(rf'^{name}/{re.escape(segment)}/', True) for segment in chosen]
  rules.append((_ABOVE.format(stack=name), True))
  return train_also(made, rules if also is None else [(also, True), *rules])


def _is_stack(params: Any) -> bool:
  return isinstance(params, dict) and all(tree.is_stacked(f'{name}/') for name in params)


class Unfreezing(NamedTuple):
  """State of `unfreeze_gradually`: `step`, int32, the updates so far."""

  step: jax.Array


def unfreeze_gradually(steps: int) -> optax.GradientTransformationExtraArgs:
  """Lets layers move one after another, from the last to the first: ULMFiT's gradual unfreezing.

  Heads and all else behind the layers move from the start, layer `l` of `L` (counted from 0) from
  update `(L - l) * steps` on, and the embeddings last, from `(L + 1) * steps` on. An encoder comes
  after all layers of its decoder. Howard and Ruder 2018, arXiv:1801.06146, section 3.3, which takes
  an epoch for `steps`.

  It zeroes updates, so chain it last: `optax.chain(optim.create('adamw', 1e-3),
  adapt.unfreeze_gradually(100))`; decoupled weight decay waits as well. Everything that may ever
  move must train (`adapt.full`), and is differentiated and has its optimizer state from the first
  step: it spares no time and no memory, but nothing is ever compiled again, and moments are warm
  when a layer starts. To spare them, train in phases: `adapt.last_layers` with 1, 2, ... layers,
  each phase from the parameters that the one before it returned.

  Args:
    steps: updates from one layer to the next, at least 1.

  Raises:
    InputError: steps below 1; at `init`, no path with the number of a layer.
  """
  if steps != int(steps) or steps < 1:
    raise InputError(
      f'unfreeze_gradually: steps is {steps!r}; give a whole number of updates from 1'
    )

  def init(params):
    _phases(params)
    return Unfreezing(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None, **extra):
    del params, extra
    leaves, structure = jax.tree.flatten(updates)

    def gated(x: jax.Array, phase: np.ndarray) -> jax.Array:
      moves = state.step >= steps * phase
      return jnp.where(moves.reshape(moves.shape + (1,) * (x.ndim - moves.ndim)), x, 0)

    moved = [gated(x, phase) for x, phase in zip(leaves, _phases(updates), strict=True)]
    return structure.unflatten(moved), Unfreezing(optax.safe_increment(state.step))

  return optax.GradientTransformationExtraArgs(init, update)


def _phases(params: Params) -> list[np.ndarray]:
  """When each leaf starts to move: 0 for the head, 1 for the last layer, ...; `[L]` of a stack."""
  paths = tree.paths(params)
  found = {path: match for path in paths if (match := re.search(LAYERS, path))}
  if not found:
    raise InputError(
      'unfreeze_gradually: no parameter has the number of a layer in its path, as encoder/0-5/ has;'
      f' the first is {paths[0] if paths else None!r}'
    )
  depths: dict[str, int] = {}  # by what stands before the number
  for match in found.values():
    before = match.string[: match.start(1)]
    depths[before] = max(depths.get(before, 0), int(match[2] or match[1]) + 1)
  above, total = {}, 0  # layers of the stacks that come first
  for before in sorted(depths, key=lambda before: ('encoder' in before, before)):
    above[before] = total
    total += depths[before]

  def phase(path: str) -> Any:
    if path not in found:
      return total + 1 if re.search(EMBEDDINGS, path) else 0
    match = found[path]
    before = match.string[: match.start(1)]
    layers = np.arange(int(match[1]), int(match[2]) + 1) if match[2] else int(match[1])
    return above[before] + depths[before] - layers

  return [np.asarray(phase(path), np.int32) for path in paths]
