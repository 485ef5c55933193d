"""How much better an answer is than the others to the same prompt, and what long ones lose."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtune.typing import InputError

_EPSILON = 1e-4  # reward units; that of TRL


def advantages(
  rewards: ArrayLike, group: int, scale: Literal['group', 'batch', 'none'] = 'group'
) -> jax.Array:
  """`(r_i - mean of its group) / (std + 1e-4)`, float32 `[B]`.

  GRPO, Shao et al. 2024, arXiv:2402.03300, section 4.1.2. `std` is that of the group, with
  `group - 1` in the denominator; of the whole batch (Liu et al. 2025, arXiv:2508.08221); or with
  'none' there is no division: dividing favours prompts that are nearly always or never solved
  (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, section 3.1). A group whose rewards are all the
  same has advantages of zero.

  Args:
    rewards: `[B]`, the answers to one prompt side by side.
    group: answers to a prompt.
    scale: whose standard deviation divides.

  Raises:
    InputError: a group of 1, whose answer cannot be compared, or one that does not divide B.
  """
  groups = _groups(rewards, group)
  if scale not in ('group', 'batch', 'none'):
    raise InputError(f"scale is {scale!r}; it must be 'group', 'batch' or 'none'")
  centred = groups - groups.mean(axis=1, keepdims=True)
  if scale == 'group':
    centred /= groups.std(axis=1, ddof=1, keepdims=True) + _EPSILON
  elif scale == 'batch':
    centred /= groups.std(ddof=1) + _EPSILON
  return centred.reshape(-1)


def leave_one_out(rewards: ArrayLike, group: int) -> jax.Array:
  """`r_i - mean of the others of its group`, float32 `[B]`.

  RLOO, Ahmadian et al. 2024, arXiv:2402.14740, equation 8: the baseline of an answer does not
  depend on it, so the gradient is unbiased. It is `group / (group - 1)` times the advantage with
  the scale 'none'.

  Args:
    rewards: `[B]`, the answers to one prompt side by side.
    group: answers to a prompt.

  Raises:
    InputError: as `advantages`.
  """
  groups = _groups(rewards, group)
  others = (groups.sum(axis=1, keepdims=True) - groups) / (group - 1)
  return (groups - others).reshape(-1)


def overlong_penalty(tokens: ArrayLike, max_tokens: int, soft: int) -> jax.Array:
  """What is added to the reward of an answer that nears the longest one allowed, in [-1, 0].

  `0` up to `max_tokens - soft` tokens, from there a line down to `-1` at `max_tokens`: DAPO, Yu et
  al. 2025, arXiv:2503.14476, equation 13.

  Args:
    tokens: of each answer, `[B]`.
    max_tokens: the most that an answer may have.
    soft: tokens before that in which the penalty grows.

  Raises:
    InputError: `soft` that is not in [1, max_tokens].
  """
  if not 1 <= soft <= max_tokens:
    raise InputError(
      f'soft is {soft}; it must be in [1, {max_tokens}], the most tokens of an answer'
    )
  over = jnp.asarray(tokens, jnp.float32) - (max_tokens - soft)
  return -jnp.clip(over / soft, 0.0, 1.0)


def _groups(rewards: ArrayLike, group: int) -> jax.Array:
  rewards = jnp.asarray(rewards, jnp.float32)
  if group < 2:
    raise InputError(
      f'group is {group}; an answer is compared with others to its prompt, so it must be at least 2'
    )
  if rewards.ndim != 1 or rewards.size % group:
    raise InputError(f'group is {group}, which does not divide the {rewards.size} rewards')
  return rewards.reshape(-1, group)
