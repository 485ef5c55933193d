"""Answers of the policy itself, with their rewards, as a batch to learn from."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtune import adapt, losses, shard
from jaxtune.adapt.toward_base import FISHER, START
from jaxtune.data import Tokenizer
from jaxtune.losses.preference import Reference
from jaxtune.models import ModelSpec, Sampling, generate
from jaxtune.train.rewards import Reward, checked
from jaxtune.typing import Batch, InputError, Params

# `(params, step, prompts) -> batch, metrics`: what `fit` calls ahead of a step.
Roll = Callable[[Params, int, Batch], tuple[dict[str, Any], dict[str, float]]]
Advantage = Callable[[np.ndarray, int], jax.Array]

_AS_IT_IS = Sampling(temperature=1.0)


def rollout(
  model: ModelSpec,
  tok: Tokenizer,
  records: Sequence[Mapping[str, Any]],
  rewards: Mapping[str, Reward],
  *,
  group: int,
  max_tokens: int,
  seed: int,
  sampling: Sampling = _AS_IT_IS,
  weights: Mapping[str, float] | None = None,
  advantage: Advantage = losses.advantages,
  overlong: int = 0,
  mask_truncated: bool = False,
  kl: float = 0.0,
  reference: Reference | None = None,
  old: bool = False,
  merge: bool = True,
  chunk: int | None = None,
) -> Roll:
  """`(params, step, prompts) -> batch, metrics`: `group` answers to each prompt, and their rewards.

  What it makes follows from the parameters, the step and the prompts, so that a resumed run is
  bitwise the one never stopped. The batch has one shape, `[B * group, P + max_tokens]`: `tokens`,
  `mask`, `supervised` (the answer, with the token that ended it), `advantages`, `weight`; with
  `old` also that, see `losses.grpo`. Answers to one prompt lie side by side.

  Metrics: `reward`, the mean of the weighted sum before anything is subtracted; `reward/NAME` of
  each where there are several; `reward_std`, the mean standard deviation within a group;
  `tied`, the share of groups that teach nothing, because all rewards are the same;
  `completion_tokens`, their mean number; `ended`, the share of answers that came to an end; `kl`
  where it is in the reward, in nats an answer.

  Args:
    model: a causal language model that generates.
    tok: its tokenizer; any of `special.ends` ends an answer.
    records: what the prompts were encoded from (`data.encode_prompts`).
    rewards: by name; see `train.rewards`.
    group: answers to a prompt, at least 2.
    max_tokens: of an answer.
    seed: of the draws.
    sampling: how tokens are drawn. The temperature is the objective's too; `top_k` and the others
      draw from another distribution than it computes.
    weights: of rewards by name, 1 by default.
    advantage: `(rewards [N], group) -> [N]`; for RLOO `losses.leave_one_out`, for Dr. GRPO
      `losses.advantages` without scale.
    overlong: the last tokens of `max_tokens` in which an answer loses up to 1 of its reward
      (`losses.overlong_penalty`); 0 for none.
    mask_truncated: whether nothing is learned of answers that `max_tokens` cut off (DAPO's
      filtering); their rewards still count for the others.
    kl: subtracts `kl (log p - log p_reference)` of the whole answer from its reward, as RLOO does.
    reference: for `kl`, as `adapt.policy_and_reference`.
    old: whether the batch carries the log-probabilities of the policy that drew, which a second
      update on it needs.
    merge: whether adapters that can be are multiplied out before they generate: a copy of the
      weights, for twice the speed. Not for a quantized base that only fits as it is.
    chunk: predictions whose logits are held at a time for `old` and `kl`; None for
      `ops.automatic_chunk`.

  Raises:
    InputError: an option outside its range; when called, a reward that does not give one finite
      number an answer.
  """
  named = {**dict.fromkeys(rewards, 1.0), **(weights or {})}
  _check(rewards, named, group, max_tokens, sampling, kl, reference)
  if overlong:
    losses.overlong_penalty(np.zeros(1), max_tokens, overlong)

  def roll(params: Params, step: int, prompts: Batch) -> tuple[dict[str, Any], dict[str, float]]:
    params = shard.gather(params)  # every process draws all answers, on a device of its own
    policy, base = reference(params) if reference else (_policy(params), None)
    given = [
      row[mask].tolist() for row, mask in zip(prompts['tokens'], prompts['mask'], strict=True)
    ]
    given = [prompt for prompt in given for _ in range(group)]
    # Of every answer its own, and of every step.
    draws = np.random.SeedSequence([seed, step]).generate_state(len(given)) >> 1
    answers = generate(
      model,
      _multiplied_out(policy) if merge else policy,
      given,
      max_tokens=max_tokens,
      sampling=sampling,
      seed=draws.tolist(),
      eos=tok.special.ends,
    )
    batch = rollout_example(prompts, group, max_tokens)
    lengths = np.zeros(len(given), np.int32)
    for row, (prompt, answer) in enumerate(zip(given, answers, strict=True)):
      end = () if answer.end is None else (answer.end,)
      tokens = [*prompt, *answer.tokens, *end]
      batch['tokens'][row, : len(tokens)] = tokens
      batch['mask'][row, : len(tokens)] = True
      lengths[row] = len(tokens) - len(prompt)
      if end or not mask_truncated:
        batch['supervised'][row, len(prompt) : len(tokens)] = True
    rows = np.repeat(prompts['row'], group)
    real = batch['weight'] > 0
    texts = tok.encoder.decode_batch([list(answer.tokens) for answer in answers])
    asked = [_text(tok, records[row], prompt) for row, prompt in zip(rows, given, strict=True)]
    sources = [records[row] for row in rows]
    parts = {name: checked(name, f, asked, texts, sources) for name, f in rewards.items()}
    total = sum((named[name] * part for name, part in parts.items()), np.zeros(len(given)))
    ended = np.array([answer.end is not None for answer in answers])
    metrics = _metrics(total, parts, real, group, lengths, ended)
    if old or kl:
      batch['old'], held = jax.device_get(
        _log_probs(model, policy, base if kl else None, batch, chunk, sampling.temperature)
      )
      if kl:
        difference = ((batch['old'] - held) * batch['supervised']).sum(1)
        total = total - kl * difference
        metrics['kl'] = float(difference[real].mean())
      if not old:
        del batch['old']
    if overlong:
      total = total + np.asarray(losses.overlong_penalty(lengths, max_tokens, overlong))
    batch['advantages'] = np.asarray(advantage(total.astype(np.float32), group))
    return shard.of_first(batch), shard.every(metrics)[0]  # a reward may differ from call to call

  return roll


def rollout_example(
  prompts: Batch, group: int, max_tokens: int, old: bool = False
) -> dict[str, np.ndarray]:
  """A batch as `rollout` makes it of these prompts, without answers, for `prepare`."""
  rows, width = len(prompts['tokens']) * group, prompts['tokens'].shape[1] + max_tokens
  batch = {
    'tokens': np.zeros((rows, width), np.int32),
    'mask': np.zeros((rows, width), bool),
    'supervised': np.zeros((rows, width), bool),
    'advantages': np.zeros(rows, np.float32),
    'weight': np.repeat(np.asarray(prompts['weight'], np.float32), group),
  }
  return {**batch, 'old': np.zeros((rows, width), np.float32)} if old else batch


def evaluate_rollouts(roll: Roll, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
  """The metrics of `rollout` over all prompts of `batches`, and `loss`, which is minus the reward.

  Every call draws with the same seeds, so that two policies are compared on the same draws.

  Args:
    roll: from `rollout`.
    params: of the policy.
    batches: of `data.eval_batches`; rows that only fill the last one do not count.

  Raises:
    InputError: there are no prompts.
  """
  sums: dict[str, float] = {}
  count = 0.0
  for number, prompts in enumerate(batches):
    found, weight = roll(params, number, prompts)[1], float(np.sum(prompts['weight']))
    count += weight
    for name, value in found.items():
      sums[name] = sums.get(name, 0.0) + weight * value
  if not count:
    raise InputError('there is nothing to evaluate: no prompt carries weight')
  means = {name: value / count for name, value in sums.items()}
  return {'loss': -means['reward'], **means}


def _policy(params: Params) -> Params:
  """Without the start that an objective compares with."""
  return {name: part for name, part in params.items() if name not in (START, FISHER)}


_merged = jax.jit(adapt.merge)


def _multiplied_out(params: Params) -> Params:
  try:
    return _merged(params)
  except InputError:  # a method that is no function of the weights
    return params


@functools.partial(jax.jit, static_argnames=('model', 'chunk', 'temperature'))
def _log_probs(
  model: ModelSpec,
  policy: Params,
  base: Params | None,
  batch: Batch,
  chunk: int | None,
  temperature: float,
) -> tuple[jax.Array, jax.Array | None]:
  """Of the policy and of the reference, `[N, T]`."""

  def score(params: Params) -> jax.Array:
    return losses.token_log_probs(model, params, batch, chunk, None, temperature)

  return score(policy), None if base is None else score(base)


def _text(tok: Tokenizer, record: Mapping[str, Any], prompt: list[int]) -> str:
  """The prompt as a reward sees it."""
  written = record['prompt']
  return written if isinstance(written, str) else tok.encoder.decode(prompt)


def _metrics(
  total: np.ndarray,
  parts: Mapping[str, np.ndarray],
  real: np.ndarray,
  group: int,
  lengths: np.ndarray,
  ended: np.ndarray,
) -> dict[str, float]:
  spread = total[real].reshape(-1, group).std(axis=1, ddof=1)
  found = {
    'reward': total[real].mean(),
    'reward_std': spread.mean(),
    'tied': (spread < 1e-6).mean(),
    'completion_tokens': lengths[real].mean(),
    'ended': ended[real].mean(),
  }
  if len(parts) > 1:
    found |= {f'reward/{name}': part[real].mean() for name, part in parts.items()}
  return {name: float(value) for name, value in found.items()}


def _check(
  rewards: Mapping[str, Reward],
  weights: Mapping[str, float],
  group: int,
  max_tokens: int,
  sampling: Sampling,
  kl: float,
  reference: Reference | None,
) -> None:
  if not rewards:
    raise InputError('there is no reward; give at least one, by name')
  for name in weights:
    if name not in rewards:
      raise InputError(
        f'weights names {name!r}, which is no reward; there are {", ".join(rewards)}'
      )
  if group < 2:
    raise InputError(
      f'group is {group}; an answer is compared with others to its prompt, so it must be at least 2'
    )
  if max_tokens < 1:
    raise InputError(f'max_tokens is {max_tokens}; it must be at least 1')
  sampling.check()
  if not sampling.temperature > 0:
    raise InputError(
      'sampling.temperature is 0; answers to learn from are drawn, so set it above 0'
    )
  if kl < 0:
    raise InputError(f'kl is {kl}; it must be at least 0')
  if kl and reference is None:
    raise InputError('kl is the distance from a reference; give it, as adapt.policy_and_reference')
