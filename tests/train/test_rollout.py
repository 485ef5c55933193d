"""Learning from the rewards of one's own answers, with a policy of a dozen letters."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers

from jaxtune import adapt, data, losses, models, train
from jaxtune.models import Sampling
from jaxtune.typing import InputError

LETTERS = 'abcdefghij'
END, GROUP, MAX_TOKENS = 10, 4, 5
MODEL = models.decoder(
  models.DecoderConfig(
    vocabulary=11, width=8, hidden=8, layers=1, heads=2, kv_heads=1, init_scale=0.3
  )
)
RECORDS = [{'prompt': text, 'answer': text[0]} for text in ('ab', 'bca', 'c', 'dd', 'fab', 'gh')]


def make_tok():
  vocabulary = {letter: i for i, letter in enumerate([*LETTERS, '<end>'])}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
  made.decoder = tokenizers.decoders.Fuse()
  made.add_special_tokens(['<end>'])
  return data.Tokenizer(made, data.SpecialTokens(eos=END, ends=(END,)))


TOK = make_tok()
PROMPTS = data.encode_prompts(TOK, RECORDS, 4).examples


def counted(letter):
  return lambda prompts, completions, records: [text.count(letter) for text in completions]


def batches():
  return data.batches(PROMPTS, 4, max_length=4, seed=1)


@pytest.fixture(scope='module')
def params():
  return adapt.lora(jax.random.key(1), MODEL.init(jax.random.key(0)), 2)


@pytest.fixture(scope='module')
def roll():
  return rollout()


def rollout(rewards=None, **options):
  options = {'group': GROUP, 'max_tokens': MAX_TOKENS, 'seed': 3, **options}
  return train.rollout(MODEL, TOK, RECORDS, rewards or {'a': counted('a')}, **options)


def test_prompts_are_what_completions_follow():
  for example, record in zip(PROMPTS, RECORDS, strict=True):
    tokens, learned = data.render(TOK, {**record, 'completion': 'a'}, 'completion')
    np.testing.assert_array_equal(tokens[: learned.argmax()], example['tokens'])
    assert RECORDS[example['row']] is record


def test_a_rollout_is_answers_with_what_they_are_worth(params, roll):
  prompts = next(batches())
  batch, metrics = roll(params, 5, prompts)
  shapes = train.rollout_example(prompts, GROUP, MAX_TOKENS)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in shapes.items()
  }
  rewards = []
  for row in range(len(batch['tokens'])):
    prompt = prompts['tokens'][row // GROUP][prompts['mask'][row // GROUP]]
    tokens = batch['tokens'][row][batch['mask'][row]]
    answer = batch['tokens'][row][batch['supervised'][row]]
    np.testing.assert_array_equal(tokens, [*prompt, *answer])
    assert END not in answer[:-1] and (len(answer) == MAX_TOKENS or answer[-1] == END)
    rewards.append((answer == 0).sum())
  np.testing.assert_allclose(batch['advantages'], losses.advantages(rewards, GROUP), rtol=1e-6)
  assert metrics['reward'] == np.mean(rewards)
  lengths = batch['supervised'].sum(1)
  assert metrics['completion_tokens'] == lengths.mean()
  ends = batch['tokens'][np.arange(16), batch['mask'].sum(1) - 1] == END
  assert metrics['ended'] == ends.mean()

  again, _ = roll(params, 5, prompts)
  jax.tree.map(np.testing.assert_array_equal, batch, again)
  other, _ = roll(params, 6, prompts)
  assert (other['tokens'] != batch['tokens']).any()


def test_answers_that_were_cut_off_may_teach_nothing(params):
  whole, _ = rollout()(params, 5, next(batches()))
  batch, _ = rollout(mask_truncated=True)(params, 5, next(batches()))
  ends = whole['tokens'][np.arange(16), whole['mask'].sum(1) - 1] == END
  assert 0 < ends.sum() < 16
  np.testing.assert_array_equal(batch['supervised'], whole['supervised'] & ends[:, None])
  np.testing.assert_array_equal(batch['advantages'], whole['advantages'])


@pytest.mark.slow
def test_methods_that_no_weights_can_hold_generate_as_they_are(params, roll):
  model = MODEL.init(jax.random.key(0))
  prompts = next(batches())
  want, _ = roll(params, 0, prompts)  # both start as the base model does
  found, _ = roll(adapt.create('bottleneck', jax.random.key(1), model), 0, prompts)
  np.testing.assert_array_equal(found['tokens'], want['tokens'])


def test_what_changes_the_reward(params):
  prompts, asked = next(batches()), {}

  def seen(prompts, completions, records):
    asked.update(prompts=prompts, records=records)
    return [len(text) for text in completions]

  parts = {'a': counted('a'), 'length': seen}
  batch, metrics = rollout(
    parts,
    weights={'a': 2.0},
    advantage=losses.leave_one_out,
    overlong=2,
    old=True,
    kl=0.1,
    reference=lambda p: (p, jax.tree.map(lambda x: 0.9 * x, p)),
  )(params, 0, prompts)
  assert asked['prompts'] == [record['prompt'] for record in asked['records']]
  answers = [row[on] for row, on in zip(batch['tokens'], batch['supervised'], strict=True)]
  reward = np.array([2.0 * (row == 0).sum() + (row != END).sum() for row in answers])
  np.testing.assert_allclose(metrics['reward'], reward.mean(), rtol=1e-6)
  assert metrics['reward'] == pytest.approx(2 * metrics['reward/a'] + metrics['reward/length'])
  policy = losses.token_log_probs(MODEL, params, batch)
  base = losses.token_log_probs(MODEL, jax.tree.map(lambda x: 0.9 * x, params), batch)
  np.testing.assert_allclose(batch['old'], policy, rtol=1e-4, atol=1e-5)
  reward = reward - 0.1 * (policy - base).sum(1)
  reward += losses.overlong_penalty([len(row) for row in answers], MAX_TOKENS, 2)
  np.testing.assert_allclose(
    batch['advantages'], losses.leave_one_out(reward, GROUP), rtol=1e-3, atol=1e-4
  )


def prepared(params, objective, **options):
  example = train.rollout_example(next(batches()), GROUP, MAX_TOKENS, **options)
  return train.prepare(
    MODEL, params, objective, optax.adam(3e-2), batches(), example=example, accumulate=2
  )


def fresh(program):
  return program._replace(state=jax.tree.map(jnp.copy, program.state))


@pytest.fixture(scope='module')
def once(params):
  return prepared(params, losses.grpo(MODEL))


@pytest.mark.slow
def test_a_policy_learns_what_is_rewarded(once, roll):
  lines = []
  train.fit(fresh(once), batches(), steps=20, roll=roll, log=lines.append)
  rewards = [line['reward'] for line in lines]
  assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.8
  assert {'completion_tokens', 'ended', 'clipped', 'loss'} <= set(lines[0])


@pytest.mark.parametrize('updates', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_and_resumed_is_bitwise_the_run_never_stopped(once, params, tmp_path, updates):
  several = updates > 1
  roll = rollout(old=several)
  program = prepared(params, losses.grpo(MODEL), old=True) if several else once
  options = {'steps': 6, 'roll': roll, 'updates': updates}
  straight = train.fit(fresh(program), batches(), **options)
  asked = iter([True] if several else [False, True])
  train.fit(
    fresh(program),
    batches(),
    checkpoints=train.open_checkpoints(tmp_path),
    stop=lambda: next(asked),
    **options,
  )
  restored = train.restore(train.open_checkpoints(tmp_path), program.state)
  assert int(restored.state.step) == 2
  stream, lines = batches(), []
  stream.set_state(restored.cursor)
  resumed = train.fit(fresh(program), stream, state=restored.state, log=lines.append, **options)
  jax.tree.map(np.testing.assert_array_equal, straight.trainable, resumed.trainable)
  # Answers are drawn for every second step only, and the second step on them is off their policy.
  assert [lines[0]['reward'] == lines[1]['reward']] == [several]


def test_the_means_of_an_evaluation_are_over_prompts(params, roll):
  rows = data.eval_batches(PROMPTS, 4, max_length=4)
  result = train.evaluate_rollouts(roll, params, rows)
  whole, half = (roll(params, number, batch)[1] for number, batch in enumerate(rows))
  for name, value in whole.items():
    assert result[name] == pytest.approx((2 * value + half[name]) / 3)
  assert result['loss'] == -result['reward'] and list(rows[1]['weight']) == [1, 1, 0, 0]
  with pytest.raises(InputError, match='nothing to evaluate'):
    train.evaluate_rollouts(roll, params, [])


def judge(reward, *completions, **columns):
  return reward(['p'] * len(completions), list(completions), [columns] * len(completions))


def test_rewards_that_can_be_checked():
  assert judge(train.exact_match(), ' 7\n', '8', answer=7) == [1.0, 0.0]
  last = train.exact_match('gold', r'answer is (\S+)')
  assert judge(last, 'answer is 3, answer is 4', 'answer is 4 3', '4', gold='4') == [1.0, 1.0, 0.0]
  assert judge(train.matches(r'^\d+$'), '12', '1b') == [1.0, 0.0]
  assert judge(train.near_length(4), 'a b c d', 'a b', '') == [0.0, -0.5, -1.0]


def test_a_classifier_judges_prompt_and_completion_together():
  config = models.EncoderConfig(
    vocabulary=11, width=8, hidden=8, layers=1, heads=2, positions=8, outputs=3
  )
  model = models.encoder(config)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: np.float32(rng.normal(0, 1, x.shape)), model.shapes())
  reward = train.log_odds(model, params, TOK.encoder, 2, max_length=6, batch_size=3)
  found = reward(['ab', 'c', 'd'], ['cd', 'dddddddd', 'e'], [{}] * 3)
  texts = [TOK.encoder.encode(text).ids for text in ('abcd', 'cddddd', 'de')]
  mask = np.arange(6) < np.array([[len(text)] for text in texts])
  tokens = np.array([text + [0] * (6 - len(text)) for text in texts])
  p = np.asarray(jax.nn.softmax(jax.jit(model.apply)(params, tokens, mask)), np.float64)[:, 2]
  np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-3)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: rollout(group=1), 'group is 1; an answer is compared'),
    (lambda: rollout(max_tokens=0), 'max_tokens is 0'),
    (lambda: rollout(sampling=Sampling()), 'sampling.temperature is 0'),
    (lambda: rollout(weights={'b': 1.0}), "weights names 'b', which is no reward; there are a"),
    (lambda: rollout(kl=0.1), 'kl is the distance from a reference'),
    (lambda: rollout(kl=-0.1), 'kl is -0.1'),
    (lambda: rollout(overlong=9), r'soft is 9; it must be in \[1, 5\]'),
    (lambda: train.rollout(MODEL, TOK, RECORDS, {}, group=2, max_tokens=1, seed=0), 'no reward'),
    (lambda: train.matches('('), 'is no regular expression'),
    (lambda: train.exact_match('a', 'b'), 'has no group'),
    (lambda: judge(train.exact_match('gold'), 'x', answer=1), "compares with 'gold', but a record"),
    (lambda: train.near_length(0), 'words is 0'),
    (
      lambda: train.log_odds(MODEL, {}, TOK.encoder, 1, max_length=4),
      'asked of a model for causal_lm',
    ),
    (
      lambda: data.encode_prompts(TOK, RECORDS, 2),
      'row 2: the prompt has 3 tokens, and max_length',
    ),
    (lambda: data.encode_prompts(TOK, [{'prompt': ''}], 2), 'row 1: the prompt is empty'),
  ],
)
def test_bad_input_is_one_line(call, message):
  with pytest.raises(InputError, match=message) as error:
    call()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('reward', 'message'),
  [
    (lambda *_: [1.0], "reward 'mine' gave 1 numbers for 16 completions"),
    (lambda *_: [float('nan')] * 16, "reward 'mine' of .* is nan; it must be a finite number"),
    (lambda *_: ['good'] * 16, "is 'good'; it must be a finite number"),
  ],
)
def test_rewards_are_one_finite_number_each(params, reward, message):
  with pytest.raises(InputError, match=message):
    rollout({'mine': reward})(params, 0, next(batches()))


def test_steps_are_whole_rollouts():
  program = types.SimpleNamespace(state=types.SimpleNamespace(step=0))
  with pytest.raises(InputError, match='steps is 5; it must be a multiple of updates, which is 2'):
    train.fit(program, None, steps=5, updates=2)
