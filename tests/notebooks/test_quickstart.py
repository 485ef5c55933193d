"""The notebook runs as it stands, on small settings, and keeps no outputs."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / 'notebooks' / 'quickstart.ipynb'
SMALL = 'STEPS, ROWS, TEST = 2, 64, 32'


@pytest.fixture
def notebook():
  return nbformat.read(NOTEBOOK, as_version=4)


def test_outputs_are_stripped(notebook):
  for cell in notebook.cells:
    assert not cell.get('outputs')
    assert cell.get('execution_count') is None


def test_main_job_has_at_most_ten_lines(notebook):
  (job,) = [cell.source for cell in notebook.cells if 'jt.train.fit' in cell.source]
  assert len(job.splitlines()) <= 10


@pytest.mark.slow
def test_runs_on_small_settings(notebook, minilm, reviews, tmp_path):
  (sizes,) = [cell for cell in notebook.cells if cell.source.startswith('STEPS')]
  sizes.source = SMALL
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute()
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  text = ''.join(output.get('text', '') for output in outputs)
  assert 'accuracy' in text and 'after' in text
  kinds = [kind for output in outputs for kind in output.get('data', {})]
  assert 'image/png' in kinds  # the curves
  assert 'text/html' in kinds  # the tree
  assert (tmp_path / 'adapter' / 'adapter_model.safetensors').exists()
