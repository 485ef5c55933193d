"""What a reader sees of a placement: a table, and a figure where something is cut."""

import jax
import jax.numpy as jnp
import pytest

from jaxtune import models, report, shard
from jaxtune.report.placement import placement_svg

CONFIG = models.DecoderConfig(vocabulary=64, width=32, hidden=64, layers=2, heads=4, head_width=8)


@pytest.fixture(scope='module')
def rows():
  model = models.decoder(CONFIG)
  shapes = model.shapes()
  mesh = shard.mesh({'fsdp': 4, 'tensor': 2})
  places = shard.param_shardings(mesh, shapes, model.axes(shapes), units=model.units)
  return shard.placement(shapes, places)


def test_table(rows):
  found = {row.path: row for row in rows}
  q = found['decoder/0-1/attn/q']
  assert q.cut == '-, fsdp, tensor' and q.bytes == 2 * 32 * 32 * 4 == 8 * q.device_bytes
  text = shard.format_placement(rows).splitlines()
  assert text[0].split() == 'parameter shape cut along MiB MiB a device'.split()
  assert any(line.split()[:3] == ['decoder/0-1/attn/q', '2x32x32', '-,'] for line in text)
  whole, own = (sum(getattr(row, name) for row in rows) for name in ('bytes', 'device_bytes'))
  assert text[-1].split() == ['in', 'all', f'{whole / 2**20:.2f}', f'{own / 2**20:.2f}']


def test_figure(rows):
  assert 'decoder/0-1/mlp/up' in placement_svg(rows)
  page = report.render(report.Report(title='t', headline='h', placement=rows))
  assert '<h2>Placement</h2>' in page
  alone = shard.placement({'w': jax.device_put(jnp.ones(4), jax.devices()[0])})
  assert [row.cut for row in alone] == [''] and placement_svg(alone) == ''
