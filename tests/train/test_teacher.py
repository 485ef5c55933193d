"""A teacher beside a student: frozen, sharded with it, cached or not the same, gone at the end."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxtune import adapt, data, losses, models, optim, train
from jaxtune.typing import InputError

RNG = np.random.default_rng(0)
SIZES = {'vocabulary': 30, 'width': 8, 'hidden': 16, 'heads': 2, 'positions': 10}
CLASSIFIER = models.encoder(
  models.EncoderConfig(**SIZES, layers=2, outputs=3, activation='relu', dropout=0.1)
)
DECODER = models.decoder(models.DecoderConfig(**SIZES, layers=1))
KEY = jax.random.key(0)
EXAMPLES = [
  {'tokens': RNG.integers(1, 30, n).astype(np.int32), 'label': np.int32(n % 3)}
  for n in (3, 8, 5, 6, 4, 8, 7, 8)
]


def filled(model):
  return jax.tree.map(lambda x: np.float32(RNG.normal(0, 0.3, x.shape)), model.shapes())


@pytest.fixture(scope='module')
def pair():
  """Student, its parameters under LoRA with dropout, the teacher's."""
  teacher = filled(CLASSIFIER)
  model, params = models.student(CLASSIFIER, teacher, 1)
  return model, adapt.lora(KEY, params, 2, dropout=0.5), teacher


def test_a_teacher_comes_and_goes(pair):
  _, params, teacher = pair
  held = adapt.with_teacher(params, teacher)
  trained = [path for path in jax.tree.leaves(adapt.trainable(held)[0]['teacher'])]
  assert not trained
  student, taught = adapt.student_and_teacher(adapt.with_key(held, KEY))
  assert set(student) == set(params) and jax.tree.all(jax.tree.map(np.array_equal, taught, teacher))
  back = adapt.without_teacher(adapt.with_start(held))
  assert adapt.rules_of(adapt.without_start(back)) == adapt.rules_of(params)
  assert jax.tree.structure(adapt.without_start(back)) == jax.tree.structure(params)
  other = adapt.without_start(adapt.with_teacher(adapt.with_start(params), teacher))
  assert adapt.rules_of(other) == adapt.rules_of(held)  # whichever is taken out first
  with pytest.raises(InputError, match="an entry 'teacher' already"):
    adapt.with_teacher(held, teacher)
  with pytest.raises(InputError, match='the parameters hold no teacher'):
    adapt.student_and_teacher(params)


def test_an_adapted_teacher_has_no_dropout(pair):
  _, params, _ = pair
  held = adapt.with_key(adapt.with_teacher(params, params), KEY)
  taught = adapt.student_and_teacher(held)[1]
  assert jax.tree.structure(taught) == jax.tree.structure(dict(params))


def test_a_step_teaches_the_student_alone_and_a_cache_is_the_same(pair):
  model, _, teacher = pair
  model = models.build(dataclasses.replace(model.config, dropout=0.0))
  plain = adapt.full(KEY, models.student(CLASSIFIER, teacher, 1)[1])
  live = losses.distillation(model, adapt.student_and_teacher, CLASSIFIER)
  batches = data.batches(EXAMPLES, 8, max_length=8, seed=0)
  program = train.prepare(
    model,
    adapt.with_teacher(plain, teacher),
    live,
    optim.create('adamw', 0.03),
    batches,
    mesh={'data': 4, 'fsdp': 2},
  )
  state, seen = program.state, []
  for _ in range(4):
    state, metrics = program.step(state, program.frozen, program.place(next(batches)))
    seen.append(float(metrics['loss']))
  assert seen[-1] < seen[0]
  jax.tree.map(np.testing.assert_array_equal, program.frozen['teacher'], teacher)

  examples = train.teacher_outputs(CLASSIFIER, teacher, EXAMPLES, 3)
  (batch,) = data.eval_batches(examples, 8, max_length=8)
  loss = jax.jit(losses.distillation(model))(plain, batch, None)
  np.testing.assert_allclose(loss.total / loss.weight, seen[0], rtol=1e-4)


def test_outputs_of_a_language_model_are_its_most_probable_tokens():
  params = filled(DECODER)
  rows = [{'tokens': x['tokens']} for x in EXAMPLES]
  made = train.teacher_outputs(DECODER, params, rows, 3, top_k=4, temperature=2.0)
  assert [x['tokens'] is y['tokens'] for x, y in zip(made, rows, strict=True)]
  batch = data.eval_batches(made, 8, max_length=8)[0]
  logits = np.float64(jax.jit(DECODER.apply)(params, batch['tokens'], batch['mask'])) / 2
  said = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  order = np.argsort(-said, axis=-1)
  real = batch['mask']
  np.testing.assert_array_equal(batch['teacher_indices'][real], order[real][:, :4])
  best = np.take_along_axis(said, order, -1)
  rest = np.log(np.exp(best[..., 4:]).sum(-1))
  np.testing.assert_allclose(batch['teacher_values'][real][:, :4], best[real][:, :4], rtol=1e-4)
  np.testing.assert_allclose(batch['teacher_values'][real][:, 4], rest[real], rtol=1e-4)
  assert not np.any(batch['teacher_values'][~real])
  np.testing.assert_array_equal(batch['teacher_temperature'], np.full(8, 2.0, np.float32))
  with pytest.raises(InputError, match="examples with 'teacher_temperature' cannot be packed"):
    data.eval_batches(made, 8, max_length=8, pack=True)


def test_more_than_all_tokens_are_all():
  made = train.teacher_outputs(DECODER, filled(DECODER), EXAMPLES[:1], 1, top_k=99)
  assert made[0]['teacher_indices'].shape == (3, 29)
  np.testing.assert_allclose(np.exp(made[0]['teacher_values']).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  'model, options, message',
  [
    (DECODER, {}, 'top_k is None for causal_lm'),
    (DECODER, {'top_k': 0}, 'top_k is 0 for causal_lm'),
    (CLASSIFIER, {'top_k': 3}, 'top_k is 3 for classification'),
    (DECODER, {'top_k': 3, 'temperature': 0.0}, 'temperature is 0.0; it must be above 0'),
    (models.encoder(models.EncoderConfig(**SIZES)), {}, 'what a model for features says is not'),
  ],
)
def test_what_cannot_be_cached_is_refused(model, options, message):
  with pytest.raises(InputError, match=message):
    train.teacher_outputs(model, None, EXAMPLES, 2, **options)


def test_no_examples_are_refused():
  with pytest.raises(InputError, match='no examples to ask a teacher about'):
    train.teacher_outputs(CLASSIFIER, None, [], 2)
