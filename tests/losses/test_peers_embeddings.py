"""Losses on embeddings beside sentence-transformers, live."""

import numpy as np
import pytest

from tests.losses.test_embeddings import GOLDEN

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]


def test_the_golden_file_is_theirs():
  pytest.importorskip('sentence_transformers')
  from scripts import golden_embeddings

  found = golden_embeddings.inputs()
  for name, (_, _, parts) in golden_embeddings.CASES.items():
    value, gradients = golden_embeddings.peer_loss(name, found)
    np.testing.assert_allclose(value, GOLDEN[f'{name}/loss'], rtol=1e-6, err_msg=name)
    for part, gradient in zip(parts, gradients, strict=True):
      np.testing.assert_allclose(gradient, GOLDEN[f'{name}/{part}'], atol=1e-6, err_msg=name)
