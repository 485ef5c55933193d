"""Divergences beside torch and TRL's GKD, live."""

import numpy as np
import pytest

from tests.losses.test_distillation import GOLDEN

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]


def test_the_golden_file_is_theirs():
  pytest.importorskip('trl')
  from scripts import golden_distillation

  found = golden_distillation.inputs()
  for name in golden_distillation.CASES:
    for key, value in golden_distillation.peer_losses(name, found).items():
      np.testing.assert_allclose(value, GOLDEN[f'{name}/{key}'], rtol=1e-6, atol=1e-7, err_msg=name)
