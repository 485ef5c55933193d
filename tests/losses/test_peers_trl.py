"""Losses on preferences beside TRL 1.16: the golden values are its own, and other rows agree."""

import jax
import numpy as np
import pytest

from tests.losses import test_preference as ours

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]


@pytest.fixture
def peer():
  pytest.importorskip('trl')
  from scripts import golden_preference

  return golden_preference


def test_the_golden_file_is_theirs(peer):
  found = peer.inputs()
  for name in peer.CASES:
    loss, gradient = peer.trl_loss(name, found)
    np.testing.assert_allclose(ours.GOLDEN[f'{name}_loss'], loss, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(
      ours.GOLDEN[f'{name}_gradient'], gradient, rtol=1e-5, atol=1e-7, err_msg=name
    )


def test_other_rows(peer, monkeypatch):
  found = peer.inputs(seed=1)
  monkeypatch.setattr(ours, 'GOLDEN', found)
  params = {'table': found['policy'], 'start': found['reference']}
  for name in peer.CASES:
    objective, batch = ours.objective_of(name), ours.batch_of(name)

    def loss(params, batch, objective=objective):
      sums = objective(params, batch, None)
      return sums.total / sums.weight

    got, gradient = jax.jit(jax.value_and_grad(loss))(params, batch)
    want, theirs = peer.trl_loss(name, found)
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
    atol = 1e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(gradient['table'], theirs, rtol=1e-5, atol=atol, err_msg=name)
