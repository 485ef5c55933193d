"""A student learns what a teacher says beside what the labels say."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxtune import ops
from jaxtune.losses.divergence import KINDS, divergence, largest_and_rest
from jaxtune.losses.log_probs import learned_tokens
from jaxtune.losses.loss import Loss, Objective, row_weights
from jaxtune.losses.masked_lm import mask_tokens
from jaxtune.losses.metrics import IGNORED
from jaxtune.losses.options import check_at_least_zero, check_positive
from jaxtune.options import is_on
from jaxtune.typing import Batch, InputError, Key, Params

TASKS = ('classification', 'token_classification', 'causal_lm', 'masked_lm')

Teacher = Callable[[Params], tuple[Params, Params]]
Arrays = dict[str, jax.Array]


def distillation(
  model: Any,
  teacher: Teacher | None = None,
  teacher_model: Any = None,
  kind: str = 'forward',
  temperature: float = 2.0,
  alpha: float = 0.5,
  beta: float = 0.5,
  hidden: float = 0.0,
  chunk: int | None = None,
  mask_token: int | None = None,
  probability: float = 0.15,
  whole_word: bool = False,
) -> Objective:
  """`sum_n w_n (alpha T^2 D_n + (1 - alpha) nats_n + hidden error_n)`, weight `sum_n w_n`.

  D_n is the `divergence` of student and teacher, both softened by the temperature T; `nats_n` the
  cross-entropy of the label, at temperature 1; `error_n` the mean squared difference of the last
  hidden states. Hinton et al. 2015, arXiv:1503.02531, section 2: gradients of D scale with 1/T^2,
  so T^2 keeps the mix the same at any temperature (TRL's GKD has no such factor).

  What is predicted, and so weighed, is a row of a classifier; a tagged token; a supervised token of
  a causal language model; a hidden token of a masked one, where student and teacher have the same
  tokens hidden. Student and teacher share tokenizer and classes.

  The teacher is either in the parameters, frozen, and computed in every step without dropout; or,
  without `teacher`, in the batch, as `train.teacher_outputs` makes it: `teacher_logits` `[B, C]` of
  a classifier of texts; of tokens `teacher_indices` int32 `[B, T, K]`, the K most probable, and
  `teacher_values` float32 `[B, T, K + 1]`, their log-probabilities and that of all others together.
  The others are one class to the divergence, of the student too: nothing is renormalized, and it is
  at most the divergence over all classes. There T is the temperature that the cache was made with,
  `teacher_temperature` `[B]`.

  Batch: as of the objective of the task, `classification`, `token_classification`, `causal_lm` or
  `masked_lm`. With an alpha of 1 a classifier of texts needs no `label`.
  Metrics: `divergence`, without T^2; `agreement`, where student and teacher hold the same most
  probable; where there are labels `accuracy` and `nats`; `hidden_error` where it counts.

  Args:
    model: the student, a `ModelSpec` for one of these tasks.
    teacher: `(params) -> student params, teacher params`, as `adapt.student_and_teacher`; None for
      a teacher in the batch.
    teacher_model: a `ModelSpec`; by default the student's.
    kind: of `divergence`.
    temperature: T; 1 is usual for language models.
    alpha: how much the teacher counts, from 0 to 1; the labels get the rest.
    beta: of `divergence`.
    hidden: how much hidden states count. Both widths are to be equal, and the teacher in the
      parameters. Of a row the mean over its real tokens, else that of the token that predicts.
    chunk: predictions whose logits are held at a time, of both models; None for
      `ops.automatic_chunk`.
    mask_token, probability, whole_word: as of `masked_lm`.

  Raises:
    InputError: an option that cannot be; when called, a batch without a teacher, or models that do
      not fit.
  """
  _check(model, kind, temperature, alpha, beta, hidden, mask_token)
  if is_on(hidden) and teacher is None:
    raise InputError('distillation: hidden states are not cached; give a teacher in the parameters')
  task, taught = model.task, teacher_model or model
  texts = task == 'classification'

  def asked(batch: Batch, key: Key | None) -> tuple[jax.Array, Arrays, Key | None]:
    """What both models see, and of each prediction its weight and its label."""
    tokens, weights = batch['tokens'], row_weights(batch)
    if texts:
      return tokens, {'weights': weights, **_if_there(batch, label='label')}, key
    seen, labels = tokens, tokens
    if task == 'token_classification':
      labels, learned = jnp.maximum(batch['tags'], 0), batch['tags'] != IGNORED
      learned = learned & batch['mask'] if 'mask' in batch else learned
    elif task == 'causal_lm':
      labels, learned = (jnp.roll(x, -1, axis=1) for x in (tokens, learned_tokens(batch)))
    else:
      draw, key = (jax.random.key(0), None) if key is None else tuple(jax.random.split(key))
      vocabulary = model.config.vocabulary
      seen, learned = mask_tokens(draw, batch, mask_token or 0, vocabulary, probability, whole_word)
    return seen, {'weights': learned * weights[:, None], 'label': labels}, key

  def objective(params: Params, batch: Batch, key: Key | None = None) -> Loss:
    own, held = (params, None) if teacher is None else teacher(params)
    seen, arrays, key = asked(batch, key)
    mask, packing = batch.get('mask'), _if_there(batch, positions='positions', segments='segments')

    def look(spec: Any, params: Params, key: Key | None) -> tuple[jax.Array, jax.Array]:
      features = spec.features(params, seen, mask, key=key, **packing)
      return features, spec.head(params, features, mask) if texts else features

    states, arrays['student'] = look(model, own, key)
    if held is None:
      arrays |= _cached(batch, texts)
    else:
      wanted, arrays['teacher'] = lax.stop_gradient(look(taught, held, None))
      if is_on(hidden):
        arrays['errors'] = _errors(states, wanted, mask, texts)

    def logits(spec: Any, params: Params, rows: jax.Array) -> jax.Array:
      return (rows if texts else spec.head(params, rows)).astype(jnp.float32)

    def sums(arrays: Arrays) -> Arrays:
      said = logits(model, own, arrays['student'])
      if 'values' in arrays:
        given = arrays['temperature']
        softness = jnp.where(given > 0, given, 1.0)  # what fills the last chunk has none
        q = largest_and_rest(jax.nn.log_softmax(said / softness[:, None]), arrays['indices'])
        apart, best = divergence(q, arrays['values'], kind, beta), arrays['indices'][:, 0]
      else:
        given = arrays['teacher']
        given = lax.stop_gradient(given if held is None else logits(taught, held, given))
        if given.shape != said.shape:
          raise InputError(
            f'distillation: the student has {said.shape[1]} outputs and the teacher '
            f'{given.shape[1]}; they must share their classes, or their tokens'
          )
        softness = jnp.full(said.shape[:1], temperature)
        q, p = (jax.nn.log_softmax(x / temperature) for x in (said, given))
        apart, best = divergence(q, p, kind, beta), jnp.argmax(given, axis=-1)
      found = {'divergence': apart, 'agreement': jnp.argmax(said, axis=-1) == best}
      loss = alpha * softness**2 * apart
      if 'label' in arrays:
        label = arrays['label'][:, None]
        picked = jnp.take_along_axis(said, label, axis=-1)[:, 0]
        found |= {
          'accuracy': picked >= jnp.max(said, axis=-1),
          'nats': jax.nn.logsumexp(said, axis=-1) - picked,
        }
        loss += (1 - alpha) * found['nats']
      if 'errors' in arrays:
        found['hidden_error'] = arrays['errors']
        loss += hidden * arrays['errors']
      return {name: jnp.sum(arrays['weights'] * x) for name, x in {'loss': loss, **found}.items()}

    if alpha < 1 and 'label' not in arrays:
      raise InputError("the batch has no 'label', which an alpha below 1 needs; set alpha to 1")
    weight = arrays['weights'].sum()
    if texts:
      found = sums(arrays)
    else:
      rows = arrays['student'].reshape(-1, arrays['student'].shape[-1])
      size = chunk or ops.automatic_chunk(model.head, own, rows)
      found = _in_chunks(sums, arrays, size)
    return Loss(found.pop('loss'), weight, found)

  return objective


def _in_chunks(sums: Callable[[Arrays], Arrays], arrays: Arrays, chunk: int) -> Arrays:
  """`sums` of arrays `[B, T, ...]` as `[B*T, ...]`, or of `chunk` of these rows at a time.

  The backward pass computes a chunk again instead of keeping its logits. What is learned comes
  first in each row, so that chunks without any, which are not computed, lie together.
  """
  rows = arrays['weights'].size
  if chunk >= rows:
    return sums({name: x.reshape(rows, *x.shape[2:]) for name, x in arrays.items()})
  order = jnp.argsort(arrays['weights'] == 0, axis=1, stable=True)

  def cut(x: jax.Array) -> jax.Array:
    wide = order.reshape(*order.shape, *[1] * (x.ndim - 2))
    x = jnp.take_along_axis(x, wide, axis=1).swapaxes(0, 1).reshape(rows, *x.shape[2:])
    x = jnp.pad(x, [(0, -rows % chunk)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, chunk, *x.shape[1:])

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(total: Arrays, part: Arrays) -> tuple[Arrays, None]:
    zeros = jax.tree.map(jnp.zeros_like, total)
    found = lax.cond(jnp.any(part['weights'] > 0), sums, lambda _: zeros, part)
    return jax.tree.map(jnp.add, total, found), None

  parts = jax.tree.map(cut, arrays)
  shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], parts))
  return lax.scan(one, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)[0]


def _errors(states: jax.Array, wanted: jax.Array, mask: jax.Array | None, texts: bool) -> jax.Array:
  """Mean squared difference of hidden states `[B, T, D]`: `[B, T]`, or of texts `[B]`."""
  if mask is not None:  # a prompt's states come before those of the text
    states, wanted = states[:, -mask.shape[1] :], wanted[:, -mask.shape[1] :]
  if states.shape != wanted.shape:
    raise InputError(
      f'distillation: hidden states of the student are {states.shape[-1]} wide and the '
      f"teacher's {wanted.shape[-1]}; set hidden to 0, or take a student of the same width"
    )
  errors = jnp.mean(jnp.square(states.astype(jnp.float32) - wanted.astype(jnp.float32)), axis=-1)
  if not texts:
    return errors
  real = jnp.ones(errors.shape, bool) if mask is None else mask
  return jnp.sum(errors * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def _cached(batch: Batch, texts: bool) -> Arrays:
  if texts and 'teacher_logits' in batch:
    return {'teacher': batch['teacher_logits']}
  if not texts and 'teacher_values' in batch:
    shape = batch['teacher_values'].shape[:2]
    return {
      'values': batch['teacher_values'],
      'indices': batch['teacher_indices'],
      'temperature': jnp.broadcast_to(batch['teacher_temperature'][:, None], shape),
    }
  raise InputError(
    'distillation: neither the parameters nor the batch hold a teacher; give one, or make the '
    'examples with train.teacher_outputs'
  )


def _if_there(batch: Batch, **names: str) -> Arrays:
  return {name: batch[key] for name, key in names.items() if key in batch}


def _check(
  model: Any,
  kind: str,
  temperature: float,
  alpha: float,
  beta: float,
  hidden: float,
  mask_token: int | None,
) -> None:
  if model.task not in TASKS:
    raise InputError(f'distillation is for {", ".join(TASKS)}, and this model for {model.task}')
  if kind not in KINDS:
    raise InputError(f'distillation: kind is {kind!r}; known: {", ".join(KINDS)}')
  check_positive('distillation', temperature=temperature)
  check_at_least_zero('distillation', hidden=hidden)
  if not 0 <= alpha <= 1:
    raise InputError(f'distillation: alpha is {alpha}; it must be from 0 to 1')
  if not 0 < beta < 1:
    raise InputError(
      f"distillation: beta is {beta}; it must be between 0 and 1, at which the kinds are 'forward' "
      "and 'reverse'"
    )
  if model.task == 'masked_lm' and mask_token is None:
    raise InputError('distillation: a masked language model needs mask_token, the id of [MASK]')
