import importlib.util

import pytest

from jaxtune.report import generated
from jaxtune.typing import InputError

WRITTEN = ['the cat sat on the mat', 'a dog barked at the quiet postman today']
WANTED = ['the cat sat on a mat', 'the dog barked at a postman today']


@pytest.mark.parametrize(
  'written, wanted, exact, f1',
  [
    ('The Paris!', 'paris', 1, 1),
    ('in Paris, France', 'Paris', 0, 0.5),
    ('yes yes no', 'yes no no', 0, 2 / 3),  # words count as often as both have them
    ('London', 'Paris', 0, 0),
    ('', 'Paris', 0, 0),
    ('the', '', 1, 1),  # an article is no word
    ('theatre', 'atre', 0, 0),  # and is none within a word
  ],
)
def test_as_squad_scores_it(written, wanted, exact, f1):
  assert generated.exact_match(written, wanted) == exact
  assert generated.token_f1(written, wanted) == pytest.approx(f1)
  assert generated.token_f1(wanted, written) == pytest.approx(f1)


def test_means_over_texts():
  found = generated.generation(['Paris', 'x'], ['Paris', 'x y'], ['token_f1', 'exact_match'])
  assert found == {'token_f1': pytest.approx((1 + 2 / 3) / 2), 'exact_match': 0.5}


# sacrebleu 2.6.0 and rouge_score 0.1.2 with its stemmer
@pytest.mark.parametrize(
  'metric, value',
  [
    ('bleu', 35.60521565856294),
    ('chrf', 73.50800740349163),
    ('rouge1', (0.8333333333333334 + 0.9333333333333333) / 2),
    ('rouge2', (0.6 + 0.4615384615384615) / 2),
    ('rougeL', (0.8333333333333334 + 0.6666666666666666) / 2),
  ],
)
def test_scores_of_packages(metric, value):
  package = 'rouge_score' if 'rouge' in metric else 'sacrebleu'
  if importlib.util.find_spec(package) is None:
    with pytest.raises(InputError, match=rf"{metric}.* {package}; pip install 'jaxtune\[eval\]'"):
      generated.generation(WRITTEN, WANTED, [metric])
    return
  assert generated.generation(WRITTEN, WANTED, [metric])[metric] == pytest.approx(value)


def test_an_unknown_metric_and_no_texts():
  with pytest.raises(InputError, match="unknown metric 'meteor'; known: exact_match, token_f1, bl"):
    generated.generation(['a'], ['a'], ['token_f1', 'meteor'])
  with pytest.raises(InputError, match='0 texts'):
    generated.generation([], [], ['token_f1'])
