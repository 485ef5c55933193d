"""Rows of one batch under adapters of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import adapt, sweep
from jaxtune.typing import InputError
from tests.sweep.conftest import Candidate, Job


def trained(job, seed, rank):
  """An adapter as training might have left it."""
  params = job.params(Candidate(seed=seed, options={'rank': rank}))
  return jax.tree.map(
    lambda x, frozen: x if frozen is not None else x + 0.1 * (1 + seed),
    params,
    adapt.trainable(params)[1],
    is_leaf=lambda x: x is None,
  )


def test_each_row_is_answered_by_its_own(lora):
  adapters = [trained(lora, seed, rank) for seed, rank in enumerate((1, 4, 2))]
  answer = sweep.serve(lora.model, adapters)
  batch = lora.batch(0)
  which = [2, 0, 1, 2]
  found = answer(batch['tokens'], batch['mask'], which)
  alone = [lora.model.apply(params, batch['tokens'], batch['mask']) for params in adapters]
  for row, number in enumerate(which):
    np.testing.assert_allclose(found[row], alone[number][row], atol=1e-5)
  assert float(jnp.abs(alone[0] - alone[1]).max()) > 0.1
  np.testing.assert_allclose(
    answer(batch['tokens'], None, [1] * 4),
    lora.model.apply(adapters[1], batch['tokens']),
    atol=1e-5,
  )


def test_bad_calls_are_one_line(lora):
  adapters = [trained(lora, seed, 2) for seed in range(2)]
  with pytest.raises(InputError, match='at least one'):
    sweep.serve(lora.model, [])
  with pytest.raises(InputError, match='adapter 1 stands on other arrays'):
    sweep.serve(lora.model, [adapters[0], trained(Job(), 1, 2)])
  with pytest.raises(InputError, match='not those of one method'):
    sweep.serve(lora.model, [adapters[0], Job('ia3').params(Candidate())])
  answer = sweep.serve(lora.model, adapters)
  batch = lora.batch(0)
  with pytest.raises(InputError, match='give each row one of the adapters 0 to 1'):
    answer(batch['tokens'], batch['mask'], [0, 1, 2, 0])
  with pytest.raises(InputError, match='for 4 rows'):
    answer(batch['tokens'], batch['mask'], [0])
