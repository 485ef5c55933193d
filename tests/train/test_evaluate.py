"""Metrics of a split are the same however it is cut into batches and spread over devices."""

import ast
import functools
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import data, losses, models, shard, train, tree
from jaxtune.losses import metrics

RNG = np.random.default_rng(0)
ROWS, T = 13, 6
ENCODER = {'vocabulary': 20, 'width': 8, 'hidden': 12, 'layers': 1, 'heads': 2, 'positions': T}
NAMES = ('O', 'B-x', 'I-x')
TOKENS = [RNG.integers(1, 20, RNG.integers(2, T + 1), dtype=np.int32) for _ in range(ROWS)]
LABELS = {
  'classification': lambda tokens: {'label': np.int32(RNG.integers(3))},
  'multi_label': lambda tokens: {'label': np.float32(RNG.random(3) < 0.5)},
  'token_classification': lambda tokens: {
    'tags': np.where(RNG.random(len(tokens)) < 0.8, RNG.integers(0, 3, len(tokens)), -100).astype(
      np.int32
    )
  },
  'mean_squared_error': lambda tokens: {'label': np.float32(RNG.normal())},
}
MEASURED = {
  'classification': {'accuracy', 'f1', 'matthews'},
  'multi_label': {'f1_micro', 'f1_macro'},
  'token_classification': {'entity_precision', 'entity_recall', 'entity_f1'},
  'mean_squared_error': {'pearson', 'spearman'},
}


@functools.cache
def built(name):
  model = models.encoder(
    models.EncoderConfig(
      **ENCODER,
      outputs=1 if name == 'mean_squared_error' else 3,
      each_token=name == 'token_classification',
    )
  )
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.7, x.shape)), model.shapes())
  options = {'names': NAMES} if name == 'token_classification' else {}
  objective = getattr(losses, name)(model, **options)
  examples = [{'tokens': tokens, **LABELS[name](tokens)} for tokens in TOKENS]
  return model, params, objective, examples, jax.jit(train.make_evaluation(objective))


def found(name, rows, place=lambda batch: batch):
  _, params, objective, examples, evaluation = built(name)
  batches = data.eval_batches(examples, rows, max_length=T)
  nothing = jax.tree.map(lambda x: None, params)
  return train.evaluate(
    evaluation, params, nothing, batches, place=place, measure=objective.measure
  )


@pytest.mark.parametrize('name', MEASURED)
def test_metrics_are_those_of_the_split_for_every_batch(name):
  whole = found(name, ROWS)
  assert set(whole) > MEASURED[name]
  assert len(set(whole.values())) > 2
  mesh = shard.mesh()
  cuts = [found(name, 5)]
  if name != 'multi_label':
    cuts.append(found(name, 8, lambda batch: shard.place_batch(mesh, batch)))
  for cut in cuts:
    assert set(cut) == set(whole)
    for key, value in whole.items():
      np.testing.assert_allclose(cut[key], value, rtol=1e-4, err_msg=key)


def test_they_are_measured_on_the_outputs_of_real_rows():
  model, params, _, examples, _ = built('classification')
  batch = data.eval_batches(examples, ROWS, max_length=T)[0]
  logits = np.asarray(jax.jit(model.apply)(params, batch['tokens'], batch['mask']))
  got = found('classification', 5)
  assert got['f1'] == metrics.f1(batch['label'], logits.argmax(1))
  assert got['matthews'] == metrics.matthews(batch['label'], logits.argmax(1))
  got = found('token_classification', 5)
  model, params, _, examples, _ = built('token_classification')
  batch = data.eval_batches(examples, ROWS, max_length=T)[0]
  guess = np.asarray(jax.jit(model.apply)(params, batch['tokens'], batch['mask'])).argmax(-1)
  real = batch['mask'] & (batch['tags'] != -100)
  sides = [
    [[NAMES[tag] for tag in row[here]] for row, here in zip(side, real, strict=True)]
    for side in (batch['tags'], guess)
  ]
  assert metrics.entity_f1(*sides)['entity_f1'] == got['entity_f1'] > 0
  assert got['accuracy'] == pytest.approx(np.mean(batch['tags'][real] == guess[real]))


def test_the_forward_pass_runs_once():
  """What the loss and the outputs both compute is one computation in the compiled program."""
  _, params, objective, examples, evaluation = built('mean_squared_error')
  batch = data.eval_batches(examples, ROWS, max_length=T)[0]
  nothing = jax.tree.map(lambda x: None, params)

  def products(function, *inputs):
    return len(re.findall(r' dot\(', jax.jit(function).lower(*inputs).compile().as_text()))

  alone = products(lambda p, b: objective(p, b, None), params, batch)
  assert products(evaluation, params, nothing, batch) == alone > 0


def test_batches_of_several_widths():
  _, params, objective, examples, evaluation = built('token_classification')
  by_length = sorted(examples, key=lambda example: len(example['tokens']))
  batches = [
    *data.eval_batches(by_length[:6], 3, max_length=max(len(e['tokens']) for e in by_length[:6])),
    *data.eval_batches(by_length[6:], 3, max_length=T),
  ]
  assert len({batch['tokens'].shape for batch in batches}) == 2
  nothing = jax.tree.map(lambda x: None, params)
  got = train.evaluate(evaluation, params, nothing, batches, measure=objective.measure)
  assert got == pytest.approx(found('token_classification', ROWS), rel=1e-4)


def test_packed_rows_are_the_padded_ones():
  _, params, objective, examples, evaluation = built('token_classification')
  nothing = jax.tree.map(lambda x: None, params)
  padded, packed = (
    data.eval_batches(examples, 4, max_length=T, pack=pack) for pack in (False, True)
  )
  assert len(packed) <= len(padded) and packed[0]['segments'].max() > 1
  got, want = (
    train.evaluate(evaluation, params, nothing, batches, measure=objective.measure)
    for batches in (packed, padded)
  )
  assert got == pytest.approx(want, rel=1e-4)


PROCESS = """
import sys, jax
jax.config.update('jax_num_cpu_devices', 1)
jax.distributed.initialize('localhost:' + sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtune import data, train
from tests.train import test_evaluate as ours

rows = NamedSharding(Mesh(jax.devices(), ('data',)), PartitionSpec('data'))
place = lambda batch: jax.tree.map(
  lambda x: jax.make_array_from_process_local_data(rows, x), dict(batch))
for name in ours.MEASURED:
  _, params, objective, examples, evaluation = ours.built(name)
  batches = data.eval_batches(
    examples, 6, max_length=ours.T, process_index=jax.process_index(), process_count=2)
  nothing = jax.tree.map(lambda x: None, params)
  print(name, train.evaluate(
    evaluation, params, nothing, batches, place=place, measure=objective.measure))
"""


@pytest.mark.slow
def test_processes_measure_the_whole_split():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  both = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, str(port), str(index)],
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for index in range(2)
  ]
  texts = [process.communicate(timeout=240)[0].splitlines() for process in both]
  own, other = ([line for line in text if line.split()[0] in MEASURED] for text in texts)
  assert own == other and len(own) == len(MEASURED)
  for line in own:
    name, values = line.split(' ', 1)
    assert ast.literal_eval(values) == pytest.approx(found(name, ROWS), rel=1e-4)


def test_a_penalty_keeps_what_is_measured():
  model, params, objective, examples, _ = built('classification')

  class Penalty:
    own = ('start',)

    def __call__(self, params):
      return jnp.sum(params['start'])

  whole = losses.penalized(objective, Penalty())
  params = {**params, 'start': np.ones(2, np.float32)}
  got = train.evaluate(
    jax.jit(train.make_evaluation(whole)),
    params,
    jax.tree.map(lambda x: None, params),
    data.eval_batches(examples, ROWS, max_length=T),
    measure=whole.measure,
  )
  want = found('classification', ROWS)
  assert got['f1'] == want['f1'] and got['penalty'] == 2
  np.testing.assert_allclose(got['loss'], want['loss'] + 2, rtol=1e-6)
  plain = losses.penalized(lambda *inputs: objective(*inputs), Penalty())
  assert not isinstance(plain, losses.Measured)


def test_perplexity_is_that_of_all_tokens_whatever_is_minimized():
  config = models.DecoderConfig(
    vocabulary=20, width=8, hidden=12, layers=1, heads=2, kv_heads=1, head_width=4
  )
  model = models.decoder(config)
  params = jax.tree.map(lambda x: np.float32(RNG.normal(0, 0.7, x.shape)), model.shapes())
  examples = [{'tokens': t, 'supervised': np.arange(len(t)) > 1} for t in TOKENS]
  nothing = tree.partition(params, [('', True)])[1]

  def run(rows, **options):
    objective = losses.causal_lm(model, **options)
    return train.evaluate(
      jax.jit(train.make_evaluation(objective)),
      params,
      nothing,
      data.eval_batches(examples, rows, max_length=T),
      measure=objective.measure,
    )

  plain = run(ROWS)
  assert plain['perplexity'] == pytest.approx(np.exp(plain['loss']))
  smooth = run(4, label_smoothing=0.2, z_loss=0.01, chunk=7)
  assert smooth['perplexity'] == pytest.approx(plain['perplexity'], rel=1e-5)
  assert smooth['nats'] == pytest.approx(plain['loss'], rel=1e-5)
  assert smooth['loss'] != pytest.approx(plain['loss'], rel=1e-3)
