"""AdaLoRA: leaves that multiply right, a penalty, and a budget that cuts what NumPy would cut."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, ops
from jaxtune.typing import InputError
from tests.adapt.leaves import check_stack

L, IN, OUT, R = 2, 6, 5, 3
KEY = jax.random.key(0)


def leaf(lead=(), base=None, seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

  base = normal(IN, OUT) if base is None else base
  return adapt.AdaLoRA(base, normal(IN, R), normal(R), normal(R, OUT), normal() + 2)


def dense(w):
  base = dense(w.base) if isinstance(w.base, adapt.AdaLoRA) else np.float64(w.base)
  a, e, b = map(np.float64, (w.a, w.e, w.b))
  return base + np.float64(w.scale)[..., None, None] * (a * e[..., None, :]) @ b


@pytest.mark.parametrize('nested', [False, True])
def test_products_are_those_of_the_dense_matrices(nested):
  w = leaf((L,), leaf((L,), seed=1) if nested else None)
  check_stack(w, dense(w), 1e-4)


def params_of(rank=R, **options):
  """One stacked and one single weight under AdaLoRA, a head that trains, and what is frozen."""
  rng = np.random.default_rng(3)
  params = {
    'decoder': {'0-1': {'attn': {'q': jnp.asarray(rng.normal(size=(L, IN, OUT)), jnp.float32)}}},
    'pooler': {'dense': jnp.asarray(rng.normal(size=(OUT, OUT)), jnp.float32)},
    'head': {'dense': jnp.ones((OUT, 2))},
    'norm': {'scale': jnp.ones(OUT)},
  }
  return adapt.adalora(KEY, params, rank, **options)


def test_starts_as_the_base_and_trains_the_triplets():
  adapted = params_of(alpha=6)
  trained, frozen = adapt.trainable(adapted)
  q = trained['decoder']['0-1']['attn']['q']
  assert (q.a.shape, q.e.shape, q.b.shape) == ((L, IN, R), (L, R), (L, R, OUT))
  assert q.base is None and q.scale is None and not q.e.any()
  assert trained['head']['dense'] is not None and trained['norm']['scale'] is None
  whole = adapted['decoder']['0-1']['attn']['q']
  np.testing.assert_allclose(whole.scale, 2, rtol=1e-5)
  np.testing.assert_array_equal(ops.materialize(whole), whole.base)
  assert whole.budget.target_rank == 2  # two thirds of 3
  assert 0.01 < float(jnp.std(whole.a)) < 0.03


def test_orthogonality_is_the_mean_of_the_norms():
  adapted = params_of(orthogonality=0.25)
  norms = []
  for w in (adapted['decoder']['0-1']['attn']['q'], adapted['pooler']['dense']):
    for a in np.float64(w.a).reshape(-1, w.a.shape[-2], R):
      norms.append(np.linalg.norm(a.T @ a - np.eye(R)))
    for b in np.float64(w.b).reshape(-1, R, w.b.shape[-1]):
      norms.append(np.linalg.norm(b @ b.T - np.eye(R)))
  assert len(norms) == 6
  np.testing.assert_allclose(adapt.orthogonality(adapted), np.mean(norms), rtol=1e-5)
  np.testing.assert_allclose(adapt.training_penalty(adapted), np.mean(norms) / 4, rtol=1e-5)
  assert adapt.training_penalty(adapt.lora(KEY, {'attn': {'q': jnp.ones((4, 4))}}, 2)) == 0.0


def test_padding_stays_zero_under_the_penalty():
  """Triplets that a layer does not have, because another has more."""
  w = leaf()
  w = adapt.AdaLoRA(w.base, w.a.at[:, 1:].set(0), w.e.at[1:].set(0), w.b.at[1:].set(0), w.scale)
  gradient = jax.grad(lambda w: adapt.orthogonality({'w': w}))(w)
  assert not gradient.a[:, 1:].any() and not gradient.b[1:].any()
  assert gradient.a[:, 0].any() and np.isfinite(gradient.a).all()


class Allocator:
  """The paper's algorithm 1 over matrices `{name: (a, e, b)}`, in float64."""

  def __init__(self, start, end, first, last, interval, beta1, beta2):
    self.numbers = start, end, first, last, interval, beta1, beta2
    self.mean, self.doubt, self.kept = {}, {}, None

  def __call__(self, step, params, gradients):
    """Cuts the singular values of `params` in place; how many triplets stay, if it cut."""
    start, end, first, last, interval, beta1, beta2 = self.numbers
    if step < last:
      for name in params:
        now = [np.abs(p * g) for p, g in zip(params[name], gradients[name], strict=True)]
        mean = self.mean.get(name, [0.0] * 3)
        doubt = self.doubt.get(name, [0.0] * 3)
        mean = [beta1 * m + (1 - beta1) * x for m, x in zip(mean, now, strict=True)]
        self.doubt[name] = [
          beta2 * d + (1 - beta2) * np.abs(x - m) for d, x, m in zip(doubt, now, mean, strict=True)
        ]
        self.mean[name] = mean
    if step == last or (first < step < last and step % interval == 0):
      budget = end + (start - end) * (1 - (step - first) / (last - first)) ** 3
      scores = {}
      for name in params:
        a, e, b = (m * d for m, d in zip(self.mean[name], self.doubt[name], strict=True))
        scores |= {(name, i): e[i] + a[:, i].mean() + b[i].mean() for i in range(len(e))}
      self.kept = set(sorted(scores, key=scores.get)[start - int(budget) :])
    elif step < last:
      return None
    for name, (_, e, _) in params.items():
      e[[i for i in range(len(e)) if (name, i) not in self.kept]] = 0
    return len(self.kept)


def matrices(tree, lane):
  """`{name: [a, e, b]}` of each layer in float64."""
  q, dense = tree['decoder']['0-1']['attn']['q'], tree['pooler']['dense']
  found = {n: (q.a[lane, n], q.e[lane, n], q.b[lane, n]) for n in range(L)}
  found['pooler'] = (dense.a[lane], dense.e[lane], dense.b[lane])
  return {name: [np.array(x, np.float64) for x in fields] for name, fields in found.items()}


def test_the_budget_is_the_papers_in_every_lane():
  steps, lanes, rate = 12, 2, 0.3
  options = {'target_rank': 1, 'warmup': 2, 'final': 0.25, 'interval': 2}
  adapted = params_of(beta1=0.7, beta2=0.8, **options)
  trainable, _ = adapt.trainable(adapted)
  rule = adapt.wrap_optimizer(adapted, optax.sgd(rate), steps)
  rng = np.random.default_rng(1)
  series = [
    jax.tree.map(lambda x: np.float32(rng.normal(size=(lanes, *x.shape))), trainable)
    for _ in range(steps)
  ]
  params = jax.tree.map(lambda x: jnp.stack([x] * lanes), trainable)
  state = jax.vmap(rule.init)(params)

  @jax.jit
  @jax.vmap
  def update(params, state, gradient):
    updates, state = rule.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  theirs = [matrices(params, lane) for lane in range(lanes)]
  allocators = [Allocator(9, 3, 2, 9, 2, 0.7, 0.8) for _ in range(lanes)]
  counts = []
  for step, gradient in enumerate(series, 1):
    params, state = update(params, state, gradient)
    for lane in range(lanes):
      slopes = matrices(gradient, lane)
      for name, fields in theirs[lane].items():
        for field, slope in zip(fields, slopes[name], strict=True):
          field -= rate * slope
      left = allocators[lane](step, theirs[lane], slopes)
      ours = matrices(params, lane)
      for name, fields in theirs[lane].items():
        np.testing.assert_array_equal(ours[name][1] == 0, fields[1] == 0)
        for got, want in zip(ours[name], fields, strict=True):
          np.testing.assert_allclose(got, want, atol=1e-5)
      if lane == 0:
        counts.append(left)
  assert counts == [None, None, None, 5, None, 3, None, 3, 3, 3, 3, 3]
  kept = [{k for k in a.kept} for a in allocators]
  assert kept[0] != kept[1]
  np.testing.assert_allclose(params['head']['dense'],
    1 - rate * sum(g['head']['dense'] for g in series), atol=1e-5)  # fmt: skip


def test_a_step_without_a_finite_gradient_leaves_the_scores_finite():
  adapted = params_of(warmup=0, final=0)
  trainable, _ = adapt.trainable(adapted)
  rule = adapt.wrap_optimizer(adapted, optax.set_to_zero(), 4)
  bad = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), trainable)
  _, state = jax.jit(rule.update)(bad, rule.init(trainable), trainable)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_other_methods_have_the_rule_that_they_are_given():
  rule = optax.sgd(1.0)
  assert (
    adapt.wrap_optimizer(adapt.lora(KEY, {'attn': {'q': jnp.ones((4, 4))}}, 2), rule, 9) is rule
  )


def test_ranks_and_targets_may_differ_by_rule_and_nothing_else():
  rules = (('attn/', {'rank': 5, 'target_rank': 4}), ('pooler', {'target_rank': 1}), ('', False))
  adapted = params_of(select=rules)
  with pytest.raises(InputError, match='pooler/dense. has another budget than .*attn/q'):
    adapt.wrap_optimizer(
      params_of(select=(('attn/', {'interval': 3}), ('pooler', True), ('', False))), optax.sgd(1), 9
    )
  rule = adapt.wrap_optimizer(adapted, optax.sgd(1.0), 20)
  trainable, _ = adapt.trainable(adapted)
  state = jax.eval_shape(rule.init, trainable)
  assert state.kept['decoder']['0-1']['attn']['q'].e.shape == (L, 5)


@pytest.mark.parametrize(
  'options, words',
  [
    ({'rank': 6}, 'rank is 6, but .*attn/q. is a 6x5'),
    ({'target_rank': 4}, 'target_rank is 4, but .*attn/q. starts with rank 3'),
    ({'warmup': -1}, 'warmup is -1'),
    ({'final': 1.5}, 'final is 1.5'),
    ({'interval': 0}, 'interval is 0'),
    ({'beta1': 1.0}, 'beta1 is 1.0'),
    ({'orthogonality': -0.1}, 'orthogonality is -0.1'),
  ],
)
def test_bad_input(options, words):
  with pytest.raises(InputError, match=words):
    params_of(**options)


def test_a_budget_that_does_not_fit():
  with pytest.raises(InputError, match='warmup of 5 and final 5 of 10 steps leave none'):
    adapt.adalora_budget(optax.sgd(1.0), 2, 10, 5, 5)
  rule = adapt.adalora_budget(optax.sgd(1.0), 4, 10)
  trainable, _ = adapt.trainable(params_of())
  with pytest.raises(InputError, match='target_rank is 4, and 3 weights .* have 9 triplets'):
    rule.init(trainable)
