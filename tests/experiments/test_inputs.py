"""A run whose head alone trains computes features once, and ends where it would without."""

import numpy as np
import pytest

from experiments import build, entry, inputs

PROBE = {'method.name': 'probe', 'train.steps': 6, 'train.save_every': 2}


@pytest.mark.slow
def test_a_probe_on_cached_features_ends_as_on_texts(
  configure, launch, exported, trained_steps, interrupt_at, monkeypatch, tmp_path, capsys
):
  config = configure(values=PROBE)
  interrupt_at(4)
  assert launch(config, tmp_path / 'cached') == entry.INTERRUPTED
  assert launch(config, tmp_path / 'cached') == 0
  out = capsys.readouterr().out
  assert out.count('features of 64 rows cached (0.0 MB)') == 2
  assert 'dropout in the body is off' in out and 'resuming at step' in out
  assert trained_steps(tmp_path / 'cached') == [1, 2, 3, 4, 5, 6]
  assert 'head/dense' in (tmp_path / 'cached' / 'report.html').read_text()

  monkeypatch.undo()  # no interrupt in the second run
  monkeypatch.setattr(inputs, 'features', lambda job: None)
  assert launch(config, tmp_path / 'texts') == 0
  got, want = exported(tmp_path / 'cached'), exported(tmp_path / 'texts')
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-5, err_msg=name)


def test_features_are_cached_only_where_they_do_and_pay(configure, monkeypatch):
  def cached(values, task='classification'):
    return inputs.features(build.job(configure(task, values))) is not None

  assert not cached({})  # LoRA
  assert not cached(PROBE | {'train.steps': 0, 'train.epochs': 0.5})  # rows that no step will see
  monkeypatch.setattr(inputs, 'MOST_BYTES', 64 * 32 * 4 - 1)
  assert not cached(PROBE)
