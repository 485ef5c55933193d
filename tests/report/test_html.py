import html.parser
import math
import pathlib
import subprocess
import sys

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.report import Confusion, Prediction, Report, curves, render, wilson, write_report
from jaxtune.tree import Route

VOID = {'meta', 'link', 'br', 'img', 'circle', 'line', 'path', 'use', 'hr', 'input'}


class Page(html.parser.HTMLParser):
  """Collects the text of each element, all tags, and what is left open."""

  def __init__(self, source):
    super().__init__()
    self.texts, self.tags, self.attributes, self.open = [''], [], [], []
    self.feed(source)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes
    self.texts.append('')
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append(tag)
    self.attributes += attributes

  def handle_endtag(self, tag):
    self.texts.append('')
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts[-1] += data


def training(steps=40):
  lines = [{'step': 0, 'eval/loss': 0.7, 'eval/accuracy': 0.5}]
  for step in range(1, steps + 1):
    lines.append({'step': step, 'loss': 1 / step, 'learning_rate': 1e-3, 'grad_norm': 2.0})
    if step % 10 == 0:
      lines.append({'step': step, 'eval/loss': 0.5, 'eval/accuracy': 0.8})
  return lines


def full(text='text', metrics=()):
  return Report(
    title=text,
    headline=text,
    facts={text: text},
    scores={text: {'accuracy': wilson(8, 10), text: 0.123456}, 'after': {'accuracy': 0.5}},
    metrics=metrics,
    confusion=Confusion([text, 'b'], [[3, 1], [0, 0]]),
    mistakes=[Prediction(text, text, text, 0.75)],
    config={'seed': 0, 'optim': {'lr': 2e-3, 'name': text}, 'data': {text: None}, 'empty': {}},
    overridden={'optim.lr'},
    routing=[Route(text, (2, 3), 'float32', text, True), Route('b', (), 'float32', '.*', False)],
    memory={text: 612_000_000},
    environment={text: text},
    files={text: text},
    notes=[text],
  )


def test_the_page_parses_and_loads_nothing():
  page = Page(render(full(metrics=training())))
  assert page.open == []
  assert 'script' not in page.tags and 'link' not in page.tags and 'img' not in page.tags
  for name, value in page.attributes:
    if name.endswith(('href', 'src')):
      assert value.startswith('#')
    assert not name.startswith('on')
    assert '://' not in (value or '')
  assert 'svg' in page.tags
  assert ('content', "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


# A page normalizes line ends and cannot hold some control characters; the escaping is the matter.
@given(st.text(st.characters(codec='utf-8', exclude_categories=['Cc']), min_size=1, max_size=40))
@settings(deadline=None, max_examples=50)
def test_any_text_is_shown_as_it_is_and_makes_no_tags(text):
  text = f'<script>alert("1")</script><b>&amp;\'"{text}</p>'
  page = Page(render(full(text)))
  assert page.tags == Page(render(full())).tags
  assert sum(shown.endswith(text) for shown in page.texts) >= 18
  assert page.open == []


def test_the_curves_hold_no_colour_of_their_own():
  source = render(full(metrics=training()))
  svg = source[source.index('<svg role="img"') :]
  svg = svg[: svg.index('</svg>')]
  assert 'var(--curve)' in svg and 'var(--raw)' in svg and 'var(--point)' in svg
  assert '#' not in svg.replace('url(#', '').replace('href="#', '')


def test_numbers_and_marks():
  page = Page(render(full()))
  text = ' '.join(page.texts)
  low, high = wilson(8, 10)[1:]
  assert f'{low:.3f} – {high:.3f}' in text
  assert '612 MB' in text
  assert '6 of 7 are trained (85.71%)' in text
  assert '0.1235' in text and '75.0%' in text
  marked = [value for name, value in page.attributes if name == 'class' and value == 'overridden']
  assert len(marked) == 1


def test_a_long_routing_table_is_folded():
  routes = [Route(f'layer/{i}', (4, 4), 'float32', '.*', True) for i in range(40)]
  page = Page(render(Report(title='t', headline='h', routing=routes)))
  assert 'details' in page.tags and 'layer/39' in page.texts
  assert 'details' not in Page(render(Report(title='t', headline='h', routing=routes[:3]))).tags


def test_what_is_empty_is_left_out():
  page = Page(render(Report(title='t', headline='h')))
  assert page.open == [] and 'h2' not in page.tags and 'table' not in page.tags


def test_the_file_is_replaced_whole(tmp_path):
  path = tmp_path / 'report.html'
  path.write_text('old')
  write_report(path, Report(title='caf\u00e9 \ud800', headline='h'))
  assert 'caf\u00e9 ?' in path.read_text('utf-8')
  assert [p.name for p in tmp_path.iterdir()] == ['report.html']
  with pytest.raises(OSError, match='missing'):
    write_report(tmp_path / 'missing' / 'report.html', Report(title='t', headline='h'))


def test_drawing_changes_nothing_global():
  before = dict(matplotlib.rcParams)
  render(full(metrics=training()))
  assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported():
  code = (
    'import sys\n'
    'import jaxtune.report as r\n'
    'assert "matplotlib" not in sys.modules\n'
    'r.render(r.Report(title="t", headline="h", metrics=[{"step": 1, "loss": 2.0}]))\n'
    'assert "matplotlib.pyplot" not in sys.modules\n'
  )
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=root, check=True)


def test_the_smoothed_loss_is_the_debiased_moving_average():
  losses = [3.0, 1.0, 2.0, 5.0] * 20
  figure = curves([{'step': i, 'loss': loss} for i, loss in enumerate(losses, 1)])
  (panel,) = figure.axes
  raw, smooth = (line.get_ydata() for line in panel.lines)
  assert list(raw) == losses
  decay = 1 - 20 / len(losses)
  for t in (1, 2, 50, 80):
    weights = [decay ** (t - 1 - i) for i in range(t)]
    expected = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
    assert smooth[t - 1] == pytest.approx(expected)


def test_a_long_run_is_thinned_to_means():
  figure = curves([{'step': i, 'loss': i % 10} for i in range(8000)])
  steps, values = figure.axes[0].lines[0].get_data()
  assert len(steps) == 800
  assert set(values) == {4.5} and steps[0] == 4.5 and steps[-1] == 7994.5


def test_gaps_and_what_was_not_logged():
  lines = [{'step': 1, 'loss': None}, {'step': 2, 'loss': 0.5}, {'step': 3, 'loss': math.nan}]
  (panel,) = curves(lines).axes
  assert list(panel.lines[0].get_xdata()) == [2]
  assert [p.get_title(loc='left') for p in curves(training()).axes] == [
    'loss',
    'evaluation accuracy',
    'learning rate',
    'gradient norm',
  ]
  with pytest.raises(ValueError, match='no training'):
    curves([{'step': 1, 'loss': None}])
  (panel,) = curves([{'step': 4, 'eval/loss': 0.5}]).axes
  assert panel.lines[-1].get_xydata().tolist() == [[4, 0.5]]
  assert 'svg' not in Page(render(Report(title='t', headline='h', metrics=lines[:1]))).tags


@pytest.mark.parametrize(
  ('count', 'shown'),
  [
    (0, '0 bytes'),
    (999, '999 bytes'),
    (999_999, '1 MB'),
    (1_034_000_000, '1.03 GB'),
    (5 * 10**12, '5 TB'),
  ],
)
def test_bytes_are_shown_in_decimal_units(count, shown):
  assert shown in Page(render(Report(title='t', headline='h', memory={'peak': count}))).texts
