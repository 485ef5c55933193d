"""The frame of the pages of comparisons and inspections: one file that needs nothing but itself."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe

from experiments.keys import Config, flatten
from jaxtune import report
from jaxtune.report.html import template

_FRAME, _STYLE = (pathlib.Path(__file__).with_name(f'page.{kind}') for kind in ('html', 'css'))


def write(
  path: pathlib.Path,
  body: pathlib.Path,
  *,
  title: str,
  headlines: Sequence[str],
  facts: Mapping[str, Any],
  config: Sequence[tuple[str, Any, bool]] = (),
  **values: Any,
) -> None:
  """Writes a page, whole or not at all.

  Args:
    path: of the page.
    body: a template that extends `frame` (page.html) with blocks `heading`, `main` and, where it
      needs them, `style` and `foot`.
    title: behind the heading.
    headlines: sentences on top.
    facts: short names and values.
    config: from `marked`.
    **values: what the template asks for besides.
  """
  text = template(body.read_text('utf-8')).render(
    frame=template(_FRAME.read_text('utf-8')),
    style=markupsafe.Markup(_STYLE.read_text('utf-8')),
    title=title,
    headlines=headlines,
    facts=facts,
    config=config,
    environment=report.versions(),
    **values,
  )
  report.replace_file(path, text.encode('utf-8', 'replace'))


def marked(config: Config, reference: Config) -> list[tuple[str, Any, bool]]:
  """Every value of a configuration with its key, and whether it is another than in `reference`."""
  defaults = dict(flatten(reference))
  return [(key, value, defaults.get(key) != value) for key, value in flatten(config)]
