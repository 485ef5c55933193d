"""Policy losses beside TRL 1.16: its own trainers on the same tensors, in float32."""

import numpy as np
import pytest

from tests.losses.test_grpo import GOLDEN

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('default')]


def test_the_golden_file_is_theirs():
  pytest.importorskip('trl')
  from scripts import golden_grpo

  for name, value in (golden_grpo.given() | golden_grpo.all_cases()).items():
    np.testing.assert_allclose(value, GOLDEN[name], rtol=1e-6, atol=1e-7, err_msg=name)
