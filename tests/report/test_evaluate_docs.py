"""The example of docs/evaluate.md runs as it stands."""

import math
import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'evaluate.md'


def test_the_example_runs(capsys):
  (code,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
  exec(compile(code, str(PAGE), 'exec'), {})
  loss, matthews = capsys.readouterr().out.splitlines()
  (value,) = re.findall(r'value=([\d.]+)', loss)
  assert abs(float(value) - math.log(64)) < 0.1  # fresh weights know nothing
  assert float(matthews) == 0.5
