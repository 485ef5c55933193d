"""A tokenizer with tokens that its model has no row for."""

import numpy as np
import pytest
import tokenizers

from jaxtune import interop, models
from jaxtune.typing import InputError


def words(count, *added):
  vocabulary = {f'w{i}': i for i in range(count)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='w0'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(list(added))
  return tokenizer


MODEL = models.decoder(models.DecoderConfig(vocabulary=8, width=4, hidden=4, layers=1, heads=1))


@pytest.mark.parametrize('tokenizer', [words(8), words(6), words(8, '<image>'), words(7, '<a>')])
def test_every_token_of_ordinary_text_has_a_row(tokenizer):
  interop.check_vocabulary(tokenizer, MODEL, 'here')


@pytest.mark.parametrize('tokenizer', [words(10), words(9, '<image>')])
def test_the_tokenizer_of_another_model(tokenizer):
  with pytest.raises(InputError, match=r"here: .* 10 tokens.* 8 rows for them \('w8' has none\)"):
    interop.check_vocabulary(tokenizer, MODEL, 'here')


def test_a_token_without_a_row_is_refused_where_it_is_met():
  tokenizer = words(8, '<image>')

  def check(*texts):
    interop.check_ids([np.array(tokenizer.encode(t).ids) for t in texts], tokenizer, MODEL)

  check()
  check('', 'w3 w7')
  with pytest.raises(InputError, match=r"token '<image>' \(8\), but the model has 8 rows"):
    check('w3', 'a picture <image> of it')
