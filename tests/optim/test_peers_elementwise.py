"""Elementwise rules, LoRA+'s groups and schedules beside their implementations in PyTorch.

heavyball 3.2.1, pytorch_optimizer 4.1.0, peft 0.21.2, transformers 5.24: 20 steps from the same
gradients, all parameters decayed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune import adapt, optim, tree
from jaxtune.optim.cautious import cautious, cautious_adamw, cautious_lion
from jaxtune.optim.decay import add_cautious_decay, add_independent_decay
from jaxtune.optim.grokfast import grokfast_adamw
from jaxtune.optim.mars import mars, scale_by_gradient_difference
from jaxtune.optim.multipliers import lora_plus

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')

STEPS = 20
SHAPES = ((4, 6), (7,), (3, 2, 5))


def arrays(seed, size=1.0):
  rng = np.random.default_rng(seed)
  return [size * rng.standard_normal(s) for s in SHAPES]


def ours(tx, size=1.0):
  """The parameters after each step."""
  with jax.enable_x64(True):
    params, step = [jnp.asarray(x) for x in arrays(0)], jax.jit(tx.update)
    state, path = tx.init(params), []
    for t in range(1, STEPS + 1):
      updates, state = step([jnp.asarray(g) for g in arrays(t, size)], state, params)
      params = optax.apply_updates(params, updates)
      path.append([np.asarray(x) for x in params])
    return path


def theirs(make, size=1.0):
  params = [torch.nn.Parameter(torch.tensor(x)) for x in arrays(0)]
  rule, path = make(params), []
  for t in range(1, STEPS + 1):
    for p, g in zip(params, arrays(t, size), strict=True):
      p.grad = torch.tensor(g)
    rule.step()
    path.append([p.detach().numpy().copy() for p in params])
  return path


def assert_close(a, b, rtol=1e-6):
  for x, y in zip(a, b, strict=True):
    for one, other in zip(x, y, strict=True):
      np.testing.assert_allclose(one, other, rtol, atol=rtol)


@pytest.fixture
def heavyball(monkeypatch):
  module = pytest.importorskip('heavyball')
  monkeypatch.setattr(module.utils, 'compile_mode', None)
  return module


@pytest.fixture
def pytorch_optimizer():
  return pytest.importorskip('pytorch_optimizer')


def test_cautious_adamw_of_heavyball(heavyball):
  """Its scale is d / max(nnz, 1), ours wherever a share of over 1e-3 agrees; its eps is a floor of
  the root and ours is added; it masks by the sign bit, so a zero gradient counts as positive."""
  path = theirs(
    lambda p: heavyball.AdamW(
      p, lr=0.1, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.2, caution=True, compile_step=False
    )
  )
  everything = optim.decay_mask([('', True)])
  tx = cautious_adamw(0.1, 0.9, 0.99, 1e-12, weight_decay=0.2, mask=everything)
  assert_close(ours(tx), path)


def test_cautious_decay_of_heavyball(heavyball):
  path = theirs(
    lambda p: heavyball.AdamW(
      p, lr=0.1, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.5, cautious_weight_decay=True
    )
  )
  tx = optax.chain(
    optax.scale_by_adam(0.9, 0.99, 1e-12),
    add_cautious_decay(0.5, mask=None),
    optax.scale_by_learning_rate(0.1),
  )
  assert_close(ours(tx), path)


def test_cautious_mars_of_heavyball(heavyball):
  """Its MARS does not clip, and its caution goes by the corrected gradient. A fault of 3.2.1: it
  hands gamma and beta1 over in each other's place, so it corrects by beta1 gamma / (1 - gamma)."""
  path = theirs(
    lambda p: heavyball.AdamW(
      p, lr=0.1, betas=(0.9, 0.99), eps=1e-12, mars=True, mars_gamma=0.05, caution=True
    )
  )
  tx = optax.chain(
    scale_by_gradient_difference(0.05 * (1 - 0.9) / (1 - 0.05), 0.9, clip=float('inf')),
    cautious(optax.scale_by_adam(0.9, 0.99, 1e-12)),
    optax.scale_by_learning_rate(0.1),
  )
  assert_close(ours(tx), path)


@pytest.mark.parametrize('size', [0.1, 1.0])
def test_mars_of_pytorch_optimizer(pytorch_optimizer, size):
  """All parameters take part, as with `optimize_1d`; the larger gradients are clipped.
  Its eps is added before the bias correction, to a root that has 1e-15 in it."""
  path = theirs(
    lambda p: pytorch_optimizer.MARS(
      p, lr=0.1, betas=(0.9, 0.99), gamma=0.05, optimize_1d=True, weight_decay=0.2, eps=1e-12
    ),
    size,
  )
  everything = optim.decay_mask([('', True)])
  tx = mars(0.1, 0.9, 0.99, 0.05, 1e-12, weight_decay=0.2, mask=everything)
  assert_close(ours(tx, size), path)


def test_cautious_lion_of_pytorch_optimizer(pytorch_optimizer):
  """Its scale is d / (nnz + 1), the paper's; ours is d / nnz. Without decay the steps depend on the
  gradients alone, so the one follows from the other."""
  path = [arrays(0), *theirs(lambda p: pytorch_optimizer.Lion(p, 0.1, (0.9, 0.95), cautious=True))]
  mine = [arrays(0), *ours(cautious_lion(0.1, 0.9, 0.95))]
  partial = 0
  for t in range(STEPS):
    for leaf in range(len(SHAPES)):
      their_step, my_step = (x[t + 1][leaf] - x[t][leaf] for x in (path, mine))
      count = np.sum(np.abs(my_step) > 1e-9)
      partial += count < my_step.size
      np.testing.assert_allclose(my_step, their_step * (count + 1) / count, rtol=1e-6, atol=1e-12)
  assert partial > STEPS


def test_grokfast_adamw_of_pytorch_optimizer(pytorch_optimizer):
  """It divides the rate by 1 + lamb unless told not to; its eps is a floor of the root."""
  path = theirs(
    lambda p: pytorch_optimizer.GrokFastAdamW(
      p,
      lr=0.1,
      betas=(0.9, 0.99),
      grokfast_alpha=0.9,
      grokfast_lamb=3.0,
      weight_decay=0.2,
      normalize_lr=False,
      eps=1e-12,
    )
  )
  everything = optim.decay_mask([('', True)])
  tx = grokfast_adamw(0.1, 0.9, 0.99, 0.9, 3.0, 1e-12, weight_decay=0.2, mask=everything)
  assert_close(ours(tx), path)


def test_independent_decay_of_pytorch_optimizer(pytorch_optimizer):
  """Its `fixed_decay` multiplies the weights by 1 - lambda first, which is the same step."""
  path = theirs(
    lambda p: pytorch_optimizer.Lion(p, 0.1, (0.9, 0.95), weight_decay=0.02, fixed_decay=True)
  )
  tx = optax.chain(
    optax.scale_by_lion(0.9, 0.95),
    optax.scale_by_learning_rate(0.1),
    add_independent_decay(0.02, mask=None),
  )
  assert_close(ours(tx), path)


def test_lora_plus_of_peft():
  """20 steps of its groups on a model of two adapted layers, a trained head and its bias.

  PEFT puts every vector with the B's, the bias of the head here; ours follows the paper: A, B, and
  all else like A.
  """
  peft = pytest.importorskip('peft')
  optimizers = pytest.importorskip('peft.optimizers')
  torch.manual_seed(0)
  net = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
  config = peft.LoraConfig(r=2, target_modules=['0', '1'], modules_to_save=['2'])
  model = peft.get_peft_model(net, config).double()
  rule = optimizers.create_loraplus_optimizer(
    model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.3, eps=1e-8
  )
  trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

  def factors(layer):
    of = {name: p for name, p in trained.items() if f'.{layer}.' in name}
    return [next(p for name, p in of.items() if f'lora_{x}' in name) for x in 'AB']

  def params(read):
    def layer(i):
      a, b = (read(p).T for p in factors(i))
      return adapt.LoRA(base=None, a=a, b=b, scale=None)

    weight, bias = (
      next(p for n, p in trained.items() if n.endswith(x)) for x in ('weight', 'bias')
    )
    weight = next(p for n, p in trained.items() if 'modules_to_save' in n and n.endswith('weight'))
    return {'0': layer(0), '1': layer(1), 'head': {'dense': read(weight).T, 'bias': read(bias)}}

  with jax.enable_x64(True):
    values = lambda: params(lambda p: p.detach().numpy().copy())  # noqa: E731
    mine = start = jax.tree.map(jnp.asarray, values())
    tx = lora_plus(0.01, 8.0, weight_decay=0.3)
    state, step = tx.init(mine), jax.jit(tx.update)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
      for p in trained.values():
        p.grad = torch.tensor(rng.standard_normal(p.shape))
      gradient = jax.tree.map(jnp.asarray, params(lambda p: p.grad.numpy().copy()))
      updates, state = step(gradient, state, mine)
      mine = optax.apply_updates(mine, updates)
      rule.step()
    moved = jax.tree.map(lambda x, y: x - y, mine, start)
    their = jax.tree.map(lambda x, y: jnp.asarray(x) - y, values(), start)
  for route, x, y in zip(
    tree.routing([('', None)], start), jax.tree.leaves(moved), jax.tree.leaves(their), strict=True
  ):
    factor = 8.0 if route.path == 'head/bias' else 1.0  # a vector; neither side decays it
    np.testing.assert_allclose(factor * x, y, rtol=1e-5, atol=1e-9, err_msg=route.path)


def test_schedules_of_transformers():
  """From the end of the warm-up on; before it, theirs is shifted by a step."""
  transformers = pytest.importorskip('transformers')
  rule = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
  steps, warm = 40, 4
  for scheduler, shape in (
    (
      transformers.get_inverse_sqrt_schedule(rule, warm, timescale=9),
      optim.schedule('rsqrt', steps=steps, warmup=warm, timescale=9),
    ),
    (
      transformers.get_inverse_sqrt_schedule(rule, warm),
      optim.schedule('rsqrt', steps=steps, warmup=warm),
    ),
    (
      transformers.get_cosine_with_hard_restarts_schedule_with_warmup(rule, warm, steps, 3),
      optim.schedule('cyclic', steps=steps, warmup=warm, cycles=3),
    ),
  ):
    when = np.arange(warm, steps + 2)
    exact = [scheduler.lr_lambdas[0](int(s)) for s in when]
    np.testing.assert_allclose(jax.vmap(shape)(jnp.asarray(when)), exact, rtol=1e-5, atol=1e-6)
