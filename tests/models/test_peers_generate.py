"""Generation beside transformers: the filters of logits, and whole texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import interop
from jaxtune.models import Sampling, generate
from jaxtune.models.sample import filtered, penalize_repetition

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

FILTERED = jax.jit(filtered)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]


@pytest.mark.parametrize('temperature', [0.6, 1.7])
@pytest.mark.parametrize('top_k', [0, 1, 7, 500])
@pytest.mark.parametrize('top_p', [1.0, 0.9, 0.3, 1e-4])
@pytest.mark.parametrize('min_p', [0.0, 0.05, 0.9])
def test_filters_keep_what_theirs_keep(temperature, top_k, top_p, min_p):
  logits = np.random.default_rng(top_k).standard_normal((4, 97)).astype(np.float32) * 3
  warpers = transformers.generation.logits_process
  theirs = [warpers.TemperatureLogitsWarper(temperature)]
  theirs += [warpers.TopKLogitsWarper(top_k)] if top_k else []
  theirs += [warpers.TopPLogitsWarper(top_p)] if top_p < 1 else []
  theirs += [warpers.MinPLogitsWarper(min_p)]
  want = torch.tensor(logits)
  for warper in theirs:
    want = warper(None, want)
  got = FILTERED(jnp.asarray(logits) / temperature, top_k, top_p, min_p)
  np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def test_repetition_is_penalized_as_theirs():
  logits = np.random.default_rng(0).standard_normal((3, 11)).astype(np.float32)
  ids = torch.tensor([[1, 2, 2], [3, 10, 0], [5, 5, 5]])
  warper = transformers.generation.logits_process.RepetitionPenaltyLogitsProcessor(1.7)
  seen = np.zeros((3, 11), bool)
  np.put_along_axis(seen, ids.numpy(), True, axis=1)
  got = penalize_repetition(jnp.asarray(logits), seen, 1.7)
  np.testing.assert_allclose(got, warper(ids, torch.tensor(logits)).numpy(), rtol=1e-6)


@pytest.mark.parametrize('penalty', [1.0, 1.3])
def test_greedy_texts_are_theirs(penalty, tmp_path):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  theirs.save_pretrained(tmp_path)
  longest = max(map(len, PROMPTS))
  ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
  options = {'do_sample': False, 'pad_token_id': 0, 'repetition_penalty': penalty}
  # Without an end first, to see which token to end with.
  whole = theirs.generate(
    ids, attention_mask=ids > 0, max_new_tokens=20, eos_token_id=95, **options
  )
  eos = int(whole[1, longest + 6])
  want = theirs.generate(
    ids, attention_mask=ids > 0, max_new_tokens=20, eos_token_id=eos, **options
  )
  model, params = interop.load(tmp_path)
  rows = generate(
    model,
    params,
    PROMPTS,
    max_tokens=20,
    sampling=Sampling(repetition_penalty=penalty),
    eos=[eos],
  )
  for row, text in zip(rows, want[:, longest:].tolist(), strict=True):
    end = text.index(eos) if eos in text else len(text)
    assert list(row.tokens) == text[:end]
  assert rows[1].reason == 'eos' and len({len(row.tokens) for row in rows}) > 1
