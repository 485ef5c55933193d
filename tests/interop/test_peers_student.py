"""A student of any family is saved as a folder that transformers opens, with the same outputs."""

import jax
import pytest

from jaxtune import interop, models
from tests.interop import decoders, encoders, families

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
pytest.importorskip('transformers')

T5 = {
  **{'vocab_size': 40, 'd_model': 24, 'd_kv': 6, 'd_ff': 36, 'num_layers': 3, 'num_heads': 4},
  **{'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0},
}


@pytest.mark.parametrize(
  'family', ['distilbert', 'modernbert', 'roberta', 'gpt2', 'smollm3', 'gemma3', 'qwen3_moe']
)
def test_a_student_opens_there(family, tmp_path):
  module, head = (
    (encoders, 'ForMaskedLM') if family in encoders.PLAIN else (decoders, 'ForCausalLM')
  )
  architecture = module.architecture(family, head)
  peer = families.maker(tmp_path)(architecture, **module.fields(family))
  model, params = models.student(peer.model, peer.params, 2)
  interop.save_hf(tmp_path / 'out', model, params)
  again, read = interop.load(tmp_path / 'out')
  assert again.config == model.config
  tokens = families.batch(40).tokens
  theirs = families.load_theirs(tmp_path / 'out', architecture)
  want = families.outputs(theirs, input_ids=tokens)
  assert families.distance(want, jax.jit(again.apply)(read, tokens)) < families.SAME


def test_a_student_of_an_encoder_decoder_opens_there(tmp_path):
  peer = families.maker(tmp_path)('T5ForConditionalGeneration', **T5)
  model, params = models.student(peer.model, peer.params, 2)
  interop.save_hf(tmp_path / 'out', model, params)
  again, read = interop.load(tmp_path / 'out')
  assert again.config == model.config and again.config.decoder_layers == 2
  theirs = families.load_theirs(tmp_path / 'out', 'T5ForConditionalGeneration')
  tokens = families.batch(40).tokens
  want = families.outputs(theirs, input_ids=tokens, decoder_input_ids=tokens[:, :5])
  got = jax.jit(again.apply)(read, tokens, targets=tokens[:, :5])
  assert families.distance(want, got) < families.SAME
