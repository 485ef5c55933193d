"""The example of docs/adapt.md runs as it stands."""

import pathlib
import re

import jax

from jaxtune import adapt, models

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'adapt.md'


def test_the_example_runs(capsys):
  (code,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
  scope = {}
  exec(compile(code, str(PAGE), 'exec'), scope)
  table = capsys.readouterr().out
  assert re.search(r'encoder/0-1/attn/q/a +2x384x16 +float32 .* True\n', table)
  assert scope['trainable']['head']['dense'].shape == (384, 3)
  assert scope['trainable']['embed']['tokens'] is None


def test_the_last_segment_is_trained():
  shapes = models.encoder(models.EncoderConfig(layers=6, outputs=3)).shapes()
  params = {**shapes, 'encoder': jax.eval_shape(lambda p: models.cut(p, 4), shapes['encoder'])}
  (rules,) = re.findall(r"`(\(\(r'encoder.*?\)\))`", PAGE.read_text(encoding='utf-8'))
  trainable, _ = adapt.trainable(adapt.freeze(jax.random.key(0), params, eval(rules)))
  segments = trainable['encoder']
  assert [name for name in segments if jax.tree.leaves(segments[name])] == ['4-5']
