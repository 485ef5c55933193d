"""Candidates on two small models, alone and as lanes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, losses, models, optim, sweep, train

SIZES: dict[str, Any] = dict(vocabulary=32, width=16, hidden=24, layers=4, heads=2)
STEPS = 20


@dataclasses.dataclass(frozen=True)
class Candidate:
  """What one run has that others have not."""

  lr: float = 1e-2
  seed: int = 0
  weight_decay: float = 0.0
  b1: float = 0.9
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Job:
  """A model with a method and a rule, which candidates vary."""

  method: str = 'lora'
  rule: str = 'adamw'

  @functools.cached_property
  def model(self) -> models.ModelSpec:
    if self.method == 'probe':
      return models.build(models.EncoderConfig(**SIZES, positions=8, outputs=3))
    return models.build(models.DecoderConfig(**SIZES, kv_heads=1))

  @functools.cached_property
  def base(self) -> Any:
    return self.model.init(jax.random.key(5))

  @functools.cached_property
  def objective(self) -> losses.Objective:
    make = losses.classification if self.method == 'probe' else losses.causal_lm
    return make(self.model)

  def params(self, candidate: Candidate) -> adapt.Adapted:
    options = dict(candidate.options)
    if self.method != 'probe' and 'also' in adapt.options_of(self.method):
      options['also'] = None
    return adapt.create(self.method, jax.random.key(candidate.seed), self.base, **options)

  def optimizer(self, candidate: Candidate) -> Any:
    betas = {'momentum' if self.rule == 'muon' else 'b1': candidate.b1}
    return optim.create(
      self.rule,
      candidate.lr,
      schedule=optim.schedule('cosine', steps=STEPS, warmup=2),
      clip_norm=1.0,
      weight_decay=candidate.weight_decay,
      **betas,
    )

  def key(self, candidate: Candidate) -> jax.Array:
    return jax.random.fold_in(jax.random.key(candidate.seed), 1)

  def batch(self, step: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(step)
    tokens = jnp.asarray(rng.integers(0, 32, (4, 8)), jnp.int32)
    mask = jnp.arange(8)[None] < jnp.asarray(rng.integers(4, 9, (4, 1)))
    if self.method == 'probe':
      labels = jnp.asarray(rng.integers(0, 3, 4), jnp.int32)
      return {'tokens': tokens, 'mask': mask, 'label': labels, 'weight': jnp.ones(4)}
    return {'tokens': tokens, 'mask': mask, 'supervised': mask}

  def alone(self, candidate: Candidate, steps: int = STEPS) -> tuple[train.State, Any, list[float]]:
    """The candidate as an ordinary run: its state, what is frozen, and its losses."""
    trainable, frozen = adapt.trainable(self.params(candidate))
    optimizer = self.optimizer(candidate)
    state = train.init_state(trainable, optimizer, self.key(candidate))
    step = jax.jit(train.make_step(self.objective, optimizer))
    seen = []
    for number in range(steps):
      state, metrics = step(state, frozen, self.batch(number))
      seen.append(float(metrics['loss']))
    return state, frozen, seen

  def run(self, candidate: Candidate, like: Any = None) -> tuple[sweep.Lanes, Any]:
    params = self.params(candidate)
    if like is not None:
      params = sweep.fit_ranks(params, like)
    return sweep.run(params, self.optimizer(candidate), self.key(candidate))

  def program(self, candidates: list[Candidate], like: Any = None, **options: Any) -> sweep.Program:
    runs = [self.run(candidate, like) for candidate in candidates]
    return sweep.prepare(
      sweep.stack([lane for lane, _ in runs]),
      runs[0][1],
      self.objective,
      self.optimizer(candidates[0]),
      options.pop('batch', self.batch(0)),
      **options,
    )


@pytest.fixture(scope='session')
def lora() -> Job:
  return Job()
