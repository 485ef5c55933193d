import numpy as np
import pytest

from jaxtune.data import few_shot
from jaxtune.typing import InputError

ROWS = [{'text': text} for text in ('a fine film', 'so dull', 'a long, long film')]
SHOWN = [({'text': 'great'}, 'yes'), ({'text': 'poor'}, 'no')]
WORDS = {'no': 'bad', 'yes': 'good'}


def whole(tokenizer, found):
  """Each prompt as text, put together again."""
  return [
    tokenizer.decode([*found.prefix, *row['tokens']], skip_special_tokens=False)
    for row in found.rows
  ]


def ask(bytewise, rows=ROWS, shown=SHOWN, words=WORDS, template='Film: {text}\nIt is', **options):
  return few_shot.prompts(rows, shown, bytewise, words, template=template, **options)


def markup(messages):
  return ''.join(f'<{m["role"]}>{m["content"]}</>' for m in messages) + '<assistant>'


def test_paragraphs(bytewise):
  found = ask(bytewise, instruction='Judge.')
  assert whole(bytewise, found)[1] == (
    'Judge.\n\nFilm: great\nIt is good\n\nFilm: poor\nIt is bad\n\nFilm: so dull\nIt is'
  )
  assert [bytewise.decode(word) for word in found.words] == [' bad', ' good']


def test_a_template_with_white_space_at_its_end_joins_the_word(bytewise):
  found = ask(bytewise, template='{text}: ')
  assert whole(bytewise, found)[1] == 'great: good\n\npoor: bad\n\nso dull: '
  assert bytewise.decode(found.words[0]) == 'bad'


def test_turns_of_a_chat(bytewise):
  found = ask(bytewise, template='{text}?', instruction='Judge.', chat=markup)
  assert whole(bytewise, found)[1] == (
    '<user>Judge.\n\ngreat?</><assistant>good</><user>poor?</><assistant>bad</>'
    '<user>so dull?</><assistant>'
  )
  assert bytewise.decode(found.words[1]) == 'good'
  zero = ask(bytewise, shown=[], template='{text}?', instruction='Judge.', chat=markup)
  assert whole(bytewise, zero)[1] == '<user>Judge.\n\nso dull?</><assistant>'


def test_the_prefix_is_all_that_is_shared_and_leaves_a_token(bytewise):
  found = ask(bytewise)
  assert bytewise.decode(found.prefix.tolist()).endswith('bad\n\nFilm: ')
  assert len({int(row['tokens'][0]) for row in found.rows}) > 1
  (row,) = ask(bytewise, rows=ROWS[:1]).rows
  assert len(row['tokens']) == 1
  nothing = ask(bytewise, shown=[], template='{text}', rows=[{'text': 'x'}, {'text': 'xy'}])
  assert nothing.prefix.size == 0 and [len(row['tokens']) for row in nothing.rows] == [1, 2]


def test_texts_are_cut_at_tokens_and_counted(bytewise):
  found = ask(bytewise, max_length=5)
  assert found.truncated == 3
  assert whole(bytewise, found)[0] == (
    'Film: great\nIt is good\n\nFilm: poor\nIt is bad\n\nFilm: a fin\nIt is'
  )


def test_special_tokens_are_the_tokenizers_without_a_chat_and_the_templates_with_one(wordpiece):
  options = {'shown': [], 'template': '{text}'}
  plain = ask(wordpiece, **options)
  chat = ask(wordpiece, chat=lambda messages: messages[0]['content'], **options)
  first = [int([*found.prefix, *found.rows[0]['tokens']][0]) for found in (plain, chat)]
  assert first[0] == wordpiece.token_to_id('[CLS]') != first[1]


@pytest.mark.parametrize('shots', [0, 1, 2, 5, 6])
def test_examples_are_balanced_seeded_and_in_random_order(shots):
  labels = np.arange(60) % 3
  names = ('a', 'b', 'c')
  draws = [few_shot.draw_examples(labels, names, shots, seed) for seed in range(8)]
  for chosen in draws:
    assert len(set(chosen)) == shots
    counts = np.bincount(labels[chosen], minlength=3) if shots else np.zeros(3)
    assert max(counts) - min(counts) <= 1
  assert draws[3] == few_shot.draw_examples(labels, names, shots, 3)
  if shots > 1:
    assert len({tuple(chosen) for chosen in draws}) > 1
    orders = {tuple(labels[chosen]) for chosen in draws}
    assert any(list(order) != sorted(order) for order in orders)


def test_every_label_may_have_the_odd_example():
  labels = np.arange(10) % 2
  firsts = [few_shot.draw_examples(labels, 'ab', 1, seed)[0] % 2 for seed in range(20)]
  assert set(firsts) == {0, 1}


def test_these_examples_are_drawn_by_every_release():
  assert few_shot.draw_examples(np.arange(20) % 2, 'ab', 4, 0) == [3, 15, 2, 12]


def test_labels_have_places():
  rows = [{'label': 1}, {'label': ' 0 '}]
  np.testing.assert_array_equal(few_shot.label_places(rows, 'label', ('0', '1')), [1, 0])


@pytest.mark.parametrize(
  'call, match',
  [
    (lambda b: few_shot.draw_examples([0, 0, 1], ('x', 'y'), 4, 0), "4 examples take 2 .*'y'.* 1 "),
    (
      lambda b: few_shot.label_places([{'label': 'x'}, {'label': 'z'}], 'label', ('x', 'y')),
      "row 2: column 'label' is 'z', which is none of the labels x, y",
    ),
    (
      lambda b: ask(b, words={'no': 'same', 'yes': 'same'}),
      "'no' and 'yes', ' same' and ' same', are",
    ),
    (
      lambda b: ask(b, words={'no': '', 'yes': 'x'}, template='{text} '),
      "'no' is '', which has no",
    ),
    (lambda b: ask(b, rows=[{'text': 'x'}, {'text': ' \n'}]), "row 2: column 'text' is empty"),
    (lambda b: ask(b, template='{txt}'), "asks for the column 'txt'; the columns are text"),
    (lambda b: ask(b, template='{text'), 'not a template like'),
    (
      lambda b: ask(b, positions=70),
      r"row 1 \('a fine film'\): its prompt and a word are 7\d tokens, but the model has 70 posit",
    ),
    (lambda b: ask(b, rows=[]), 'no records'),
  ],
)
def test_what_cannot_be_used(bytewise, call, match):
  with pytest.raises(InputError, match=match) as caught:
    call(bytewise)
  assert '\n' not in str(caught.value)


def test_a_prompt_that_just_fits(bytewise):
  found = ask(bytewise)
  longest = max(len(found.prefix) + len(row['tokens']) for row in found.rows)
  positions = longest + max(map(len, found.words))
  assert len(ask(bytewise, positions=positions).rows) == 3
  with pytest.raises(InputError, match='row 3'):
    ask(bytewise, positions=positions - 1)
