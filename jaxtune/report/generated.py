"""How close written texts are to the texts that were wanted."""

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from jaxtune.typing import InputError

_ARTICLES = re.compile(r'\b(a|an|the)\b')


def exact_match(written: str, wanted: str) -> float:
  """1 where both are the same without case, punctuation, articles and extra space (SQuAD), else 0.

  Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
  """
  return float(_normalized(written) == _normalized(wanted))


def token_f1(written: str, wanted: str) -> float:
  """`2 precision recall / (precision + recall)` over the words, counted, that both share (SQuAD).

  Words are those of `exact_match`. Where one text has none, 1 if neither has, else 0.
  """
  a, b = _normalized(written).split(), _normalized(wanted).split()
  if not a or not b:
    return float(a == b)
  return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def generation(
  written: Sequence[str], wanted: Sequence[str], metrics: Sequence[str]
) -> dict[str, float]:
  """name -> score of all texts together.

  `exact_match`, `token_f1` and `rouge1`, `rouge2`, `rougeL` (F measures, Lin 2004) are means over
  the texts, 0 to 1; `bleu` (Papineni et al. 2002) and `chrf` (Popovic 2015) are sacreBLEU's of the
  corpus, 0 to 100.

  Raises:
    InputError: as `check`, or no texts.
  """
  check(metrics)
  if not written or len(written) != len(wanted):
    raise InputError(f'{len(written)} texts for {len(wanted)} references; need as many, above 0')
  return {name: METRICS[name](written, wanted) for name in metrics}


def check(metrics: Sequence[str]) -> None:
  """Whether these can be measured here, before anything is written.

  Raises:
    InputError: an unknown metric, or one whose package is not installed.
  """
  for name in metrics:
    if name not in METRICS:
      raise InputError(f'unknown metric {name!r}; known: {", ".join(METRICS)}')
    METRICS[name](['a'], ['a'])


def _normalized(text: str) -> str:
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def _mean(score: Callable[[str, str], float]) -> Callable[[Sequence[str], Sequence[str]], float]:
  return lambda written, wanted: sum(map(score, written, wanted)) / len(written)


def _sacrebleu(name: str) -> Callable[[Sequence[str], Sequence[str]], float]:
  def score(written: Sequence[str], wanted: Sequence[str]) -> float:
    sacrebleu = _package('sacrebleu', name)
    return float(getattr(sacrebleu, f'corpus_{name}')(list(written), [list(wanted)]).score)

  return score


def _rouge(name: str) -> Callable[[Sequence[str], Sequence[str]], float]:
  def score(written: Sequence[str], wanted: Sequence[str]) -> float:
    scorer = _package('rouge_score.rouge_scorer', name).RougeScorer([name], use_stemmer=True)
    return _mean(lambda a, b: float(scorer.score(b, a)[name].fmeasure))(written, wanted)

  return score


def _package(module: str, metric: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError:
    raise InputError(
      f"metric {metric!r} needs the package {module.split('.')[0]}; pip install 'jaxtune[eval]'"
    ) from None


METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
  'exact_match': _mean(exact_match),
  'token_f1': _mean(token_f1),
  'bleu': _sacrebleu('bleu'),
  'chrf': _sacrebleu('chrf'),
  'rouge1': _rouge('rouge1'),
  'rouge2': _rouge('rouge2'),
  'rougeL': _rouge('rougeL'),
}
