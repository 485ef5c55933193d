"""Lanes are the runs that each would be alone."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, losses, optim, sweep, train, tree
from jaxtune.sweep import lanes as lanes_module
from jaxtune.typing import InputError
from tests.sweep.conftest import STEPS, Candidate, Job

LORA = [
  Candidate(1e-2, 0, options={'rank': 4, 'alpha': 4.0, 'dropout': 0.1}),
  Candidate(3e-3, 1, 0.1, 0.8, {'rank': 2, 'alpha': 8.0, 'dropout': 0.3}),
  Candidate(2e-3, 2, 0.0, 0.95, {'rank': 1, 'alpha': 2.0, 'dropout': 0.2}),
]
DORA = [
  Candidate(1e-2, 0, options={'rank': 4}),
  Candidate(3e-3, 1, 0.1, 0.8, {'rank': 2, 'alpha': 8.0}),
]
PLAIN = [Candidate(1e-2, 0), Candidate(3e-3, 1, 0.1, 0.8), Candidate(2e-2, 2)]
CASES = {
  'lora': LORA,
  'dora': DORA,
  'ia3': PLAIN,
  'prompt': PLAIN,
  'probe': PLAIN,
}
QUICK = [('lora', 'adamw')]


def cases():
  for method in CASES:
    for rule in ('adamw', 'muon', 'adamw_8bit'):
      slow = () if (method, rule) in QUICK else pytest.mark.slow
      yield pytest.param(method, rule, marks=slow)


def close(lane, alone, limit=1e-5):
  """Each tensor within the limit of the norm; a smaller rank has zeros behind it."""
  for path, own, found in zip(
    tree.paths(alone), jax.tree.leaves(alone), jax.tree.leaves(lane), strict=True
  ):
    own, found = np.asarray(own), np.asarray(found)
    inside = tuple(slice(0, size) for size in own.shape)
    rest = found.copy()
    rest[inside] = 0
    assert not rest.any(), path
    assert np.linalg.norm(found[inside] - own) <= limit * max(np.linalg.norm(own), 1e-6), path


@pytest.mark.parametrize('method, rule', [*cases()])
def test_lanes_are_separate_runs(method, rule):
  job, candidates = Job(method, rule), CASES[method]
  program = job.program(candidates, job.params(candidates[0]))
  lanes, seen = program.lanes, []
  for number in range(STEPS):
    lanes, metrics = program.step(lanes, program.base, job.batch(number))
    seen.append(np.asarray(metrics['loss']))
  for lane, candidate in enumerate(candidates):
    state, frozen, alone = job.alone(candidate)
    few_bits = rule == 'adamw_8bit'
    np.testing.assert_allclose([row[lane] for row in seen], alone, atol=1e-3 if few_bits else 1e-5)
    if not few_bits:
      close(sweep.take(lanes, lane).state.trainable, state.trainable)


def test_a_lane_taken_out_is_an_ordinary_run_and_goes_on_as_one(lora):
  program = lora.program(LORA, lora.params(LORA[0]))
  lanes = program.lanes
  for number in range(3):
    lanes, _ = program.step(lanes, program.base, lora.batch(number))
  run = sweep.take(lanes, 1)
  step = jax.jit(train.make_step(lora.objective, lora.optimizer(LORA[1])))
  state, _ = step(run.state, tree.combine(run.own, program.base), lora.batch(3))
  lanes, _ = program.step(lanes, program.base, lora.batch(3))
  close(sweep.take(lanes, 1).state.trainable, state.trainable, 1e-6)
  assert int(state.step) == 4


def test_refilling_compiles_nothing_and_moves_no_other_lane(lora):
  like = lora.params(LORA[0])
  program = lora.program(LORA, like)
  fresh, _ = lora.run(LORA[2], like)
  lanes = sweep.put(program.lanes, 0, sweep.take(program.lanes, 0))
  kept = [jax.device_get(sweep.take(lanes, lane)) for lane in range(3)]
  before = compilations(lanes)
  lanes = sweep.put(lanes, 1, fresh)
  for lane in (0, 2):
    for old, new in zip(
      jax.tree.leaves(kept[lane]), jax.tree.leaves(sweep.take(lanes, lane)), strict=True
    ):
      assert np.array_equal(bits(old), bits(new))
  lanes, metrics = program.step(lanes, program.base, lora.batch(0))
  assert compilations(lanes) == before
  assert metrics['loss'][1] == pytest.approx(lora.alone(LORA[2], 1)[2][0], abs=1e-5)
  assert float(sweep.take(lanes, 1).state.step) == 1


def bits(x):
  return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def compilations(lanes) -> int:
  put = lanes_module._putting(lanes.state.step.sharding)
  return put._cache_size() + lanes_module._take._cache_size()


@pytest.mark.slow
def test_a_dead_lane_kills_no_other(lora):
  dead = Candidate(float(np.finfo(np.float32).max), options=LORA[0].options)
  program = lora.program([dead, LORA[1]], lora.params(LORA[0]))
  lanes = program.lanes
  for number in range(3):
    lanes, metrics = program.step(lanes, program.base, lora.batch(number))
  assert not np.isfinite(metrics['loss'][0])
  assert metrics['loss'][1] == pytest.approx(lora.alone(LORA[1], 3)[2][-1], abs=1e-5)


@pytest.mark.slow
def test_lanes_at_different_steps_with_batches_of_their_own(lora):
  candidates = [Candidate(1e-2, 0, options={'rank': 2}), Candidate(3e-3, 1, options={'rank': 2})]
  batch = jax.tree.map(lambda *x: jnp.stack(x), lora.batch(0), lora.batch(1))
  program = lora.program(candidates, batch=batch, own_batches=True)
  ahead = lora.run(candidates[1])[0]._replace(state=lora.alone(candidates[1], 1)[0])
  _, metrics = program.step(sweep.put(program.lanes, 1, ahead), program.base, batch)
  alone = [lora.alone(candidates[0], 1)[2][0], lora.alone(candidates[1], 2)[2][1]]
  np.testing.assert_allclose(metrics['loss'], alone, atol=1e-5)


@pytest.mark.slow
def test_lanes_with_weights_of_their_own_in_the_objective(lora):
  """Each is the run whose objective has its weight; all are judged by one."""
  candidate = Candidate(1e-2, 0, options={'rank': 2})
  params, optimizer = lora.params(candidate), lora.optimizer(candidate)
  weights = (0.0, 0.3)

  def objective(given):
    return losses.causal_lm(lora.model, z_loss=given['z_loss'])

  runs = [sweep.run(params, optimizer, lora.key(candidate), {'z_loss': x}) for x in weights]
  given = (sweep.stack([run for run, _ in runs]), runs[0][1], objective, optimizer, lora.batch(0))
  with pytest.raises(InputError, match='give one for `judge`'):
    sweep.prepare(*given)
  program = sweep.prepare(*given, judge=lora.objective)
  lanes = program.lanes
  for number in range(3):
    lanes, _ = program.step(lanes, program.base, lora.batch(number))
  for lane, weight in enumerate(weights):
    trainable, frozen = adapt.trainable(params)
    state = train.init_state(trainable, optimizer, lora.key(candidate))
    step = jax.jit(train.make_step(objective({'z_loss': weight}), optimizer))
    for number in range(3):
      state, _ = step(state, frozen, lora.batch(number))
    close(sweep.take(lanes, lane).state.trainable, state.trainable)
    judged = lora.objective(tree.combine(state.trainable, frozen), lora.batch(9), None)
    found = program.evaluate(lanes, [lora.batch(9)])[lane]
    assert found['loss'] == pytest.approx(float(judged.total / judged.weight), abs=1e-5)


@pytest.mark.parametrize('devices', [2, pytest.param(4, marks=pytest.mark.slow)])
def test_lanes_spread_over_devices(lora, devices):
  candidates = [Candidate(10.0**-k, k, options={'rank': 2}) for k in range(2, 6)]
  whole = lora.program(candidates)
  spread = lora.program(candidates, devices=jax.devices()[:devices])
  text = spread.compiled.as_text()
  assert not any(name in text for name in ('all-reduce', 'all-gather', 'all-to-all', 'permute('))
  a, b = whole.lanes, spread.lanes
  for number in range(3):
    a, _ = whole.step(a, whole.base, whole.place(lora.batch(number)))
    b, _ = spread.step(b, spread.base, spread.place(lora.batch(number)))
  close(b.state.trainable, a.state.trainable)


def test_one_base(lora):
  candidates = [Candidate(1e-3, seed, options={'rank': 2}) for seed in range(16)]
  program = lora.program(candidates)
  one, base = lora.run(candidates[0])
  expected = tree.size(base) + 16 * tree.size(one) + tree.size(program.batch)
  found = program.compiled.memory_analysis().argument_size_in_bytes
  assert found == pytest.approx(expected, rel=0.01)


def test_evaluates_every_lane_on_the_same_rows(lora):
  program = lora.program(LORA, lora.params(LORA[0]))
  rows = [lora.batch(100), lora.batch(101)]
  found = program.evaluate(program.lanes, rows)
  evaluation = jax.jit(train.make_evaluation(lora.objective))
  for lane, candidate in enumerate(LORA):
    trainable, frozen = adapt.trainable(lora.params(candidate))
    alone = train.evaluate(evaluation, trainable, frozen, rows, measure=lora.objective.measure)
    assert found[lane] == pytest.approx(alone, abs=1e-5)


def test_shared_layers():
  job = Job()
  params = job.params(LORA[0])
  assert sweep.shared_layers(params) == 0
  last = adapt.last_layers(jax.random.key(0), job.base, layers=1, also=None)
  assert sweep.shared_layers(last) == 3
  assert sweep.shared_layers(adapt.full(jax.random.key(0), job.base)) == 0
  probe = Job('probe')
  assert sweep.shared_layers(probe.params(Candidate())) == 4


@pytest.mark.parametrize('method', ['last_layers', pytest.param('probe', marks=pytest.mark.slow)])
def test_what_no_lane_trains_runs_once(method):
  """Eight lanes cost what the trained part costs eight times, and the rest once."""
  job = Job(method)
  flops = {}
  for size in (1, 8):
    options = {'layers': 1} if method == 'last_layers' else {}
    candidates = [Candidate(1e-3, seed, options=options) for seed in range(size)]
    program = job.program(candidates)
    flops[size] = products(program, job)
  assert flops[8] < 8 * flops[1] * (0.75 if method == 'last_layers' else 0.3)


def products(program, job) -> int:
  """Multiplications of all products in the step, by its jaxpr; a scan counts its length."""

  def of(jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
      inner = sum(of(sub) for sub in jax.extend.core.jaxprs_in_params(eqn.params))
      total += inner * (eqn.params['length'] if eqn.primitive.name == 'scan' else 1)
      if eqn.primitive.name == 'dot_general':
        contracted = eqn.params['dimension_numbers'][0][0]
        sizes = eqn.invars[0].aval.shape
        total += eqn.outvars[0].aval.size * int(np.prod([sizes[axis] for axis in contracted]))
    return total

  step = sweep.make_step(train.make_step(job.objective, job.optimizer(Candidate())))
  closed = jax.make_jaxpr(step)(program.lanes, program.base, job.batch(0))
  return of(closed.jaxpr)


def test_bad_lanes_are_one_line(lora):
  like = lora.params(LORA[0])
  one, _ = lora.run(LORA[0])
  small, _ = lora.run(LORA[1])
  with pytest.raises(InputError, match=r'run 1 cannot be a lane beside run 0: .*fit_ranks'):
    sweep.stack([one, small])
  with pytest.raises(InputError, match='at least one'):
    sweep.stack([])
  with pytest.raises(InputError, match='does not fit into .* largest rank'):
    sweep.fit_ranks(like, lora.params(LORA[1]))
  lanes = sweep.stack([one, one])
  with pytest.raises(InputError, match='no lane 2; choose one from 0 to 1'):
    sweep.take(lanes, 2)
  with pytest.raises(InputError, match='does not fit into lane 0'):
    sweep.put(lanes, 0, small)
  program = [sweep.run(like, optim.create('sgd', 0.1), jax.random.key(0))[0]] * 3
  with pytest.raises(InputError, match='3 lanes cannot be spread over 2 devices; take 4 lanes'):
    sweep.prepare(
      sweep.stack(program),
      {},
      lora.objective,
      optim.create('sgd', 0.1),
      lora.batch(0),
      devices=jax.devices()[:2],
    )
