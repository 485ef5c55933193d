import io
import math
import re

import pytest
import rich.console

from jaxtune.report import Progress


def run(total, start=0, every=1, terminal=False, evaluate=()):
  file = io.StringIO()
  console = rich.console.Console(
    file=file, force_terminal=terminal, width=100, legacy_windows=False, _environ={'TERM': 'xterm'}
  )
  with Progress(total, start=start, console=console) as progress:
    for step in range(start + every, total + 1, every):
      progress.step(step, {'loss': 1 / step, 'learning_rate': 2e-3, 'tokens_per_second': 12345.6})
      if step in evaluate:
        progress.evaluated(step, {'eval/accuracy': 0.79012, 'eval/loss': 0.45})
  return file.getvalue()


@pytest.mark.parametrize('total', [1, 19, 20, 160, 1001])
@pytest.mark.parametrize('every', [1, 7])
def test_a_log_file_gets_few_lines_without_control_codes(total, every):
  text = run(total, every=every)
  assert len(text.splitlines()) <= 22
  assert '\x1b' not in text and '\r' not in text
  if total % every == 0:
    assert f'step {total}/{total}' in text.splitlines()[-1]


def test_a_plain_line_says_all(monkeypatch):
  clock = iter(float(10 * i) for i in range(1000))
  monkeypatch.setattr('time.monotonic', lambda: next(clock))
  lines = run(40, evaluate=[40]).splitlines()
  # 0.5879 = (0.81 * 1 + 0.9 / 2 + 1 / 3) / (0.81 + 0.9 + 1), and 37 more steps of 10 s
  assert lines[0] == 'step 1/40  loss 1.0000  lr 2.00e-03  12,346 tokens/s'
  assert lines[1] == 'step 3/40  loss 0.5879  lr 2.00e-03  12,346 tokens/s  6:10 left'
  assert lines[-1] == 'step 40/40  eval accuracy 0.7901  eval loss 0.45'


def test_the_loss_is_a_debiased_average_that_shows_nan_and_recovers():
  file = io.StringIO()
  with Progress(3, console=rich.console.Console(file=file)) as progress:
    for step, loss in enumerate([1.0, math.nan, 3.0], 1):
      progress.step(step, {'loss': loss})
  shown = re.findall(r'loss (\S+)', file.getvalue())
  assert shown == ['1.0000', 'nan', f'{(0.9 * 0.1 * 1 + 0.1 * 3) / (0.9 * 0.1 + 0.1):.4f}']


def test_a_terminal_gets_a_bar_with_evaluations_above_it():
  text = run(30, start=10, terminal=True, evaluate=[20])
  plain = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)
  assert 'eval accuracy 0.7901' in plain
  assert 'step 30/30' in plain and 'lr 2.00e-03' in plain
  assert plain.index('eval accuracy') < plain.rindex('step 30/30')
  assert '\x1b[?25h' in text  # the cursor is shown again


def test_square_brackets_are_text_not_markup():
  file = io.StringIO()
  with Progress(1, console=rich.console.Console(file=file)) as progress:
    progress.evaluated(1, {'eval/[bold]f1': 0.5})
  assert 'eval [bold]f1 0.5' in file.getvalue()
