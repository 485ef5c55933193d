"""The encoders of the parity tests: a model of each family, unusual ones, and fields to change."""

from typing import Any

HEADS = ('Model', 'ForMaskedLM', 'ForSequenceClassification', 'ForTokenClassification')
IDS = {'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
BERT = {
  'vocab_size': 40,
  'hidden_size': 24,
  'intermediate_size': 36,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'max_position_embeddings': 20,
  'layer_norm_eps': 3e-3,
  **IDS,
}
DISTILBERT = {
  'vocab_size': 40,
  'dim': 24,
  'hidden_dim': 36,
  'n_layers': 3,
  'n_heads': 4,
  'max_position_embeddings': 20,
  **IDS,
}


def ropes(**full: Any) -> dict[str, Any]:
  """`rope_parameters`, whose bases are small enough for a few tokens to turn every pair."""
  sliding = {'rope_type': 'default', 'rope_theta': 20.0}
  full = {'rope_type': 'default', 'rope_theta': 100.0} | full
  return {'rope_parameters': {'full_attention': full, 'sliding_attention': sliding}}


MODERNBERT = {k: v for k, v in BERT.items() if k != 'layer_norm_eps'} | {
  'norm_eps': 3e-3,
  'num_hidden_layers': 4,
  'local_attention': 5,
  'cls_token_id': 1,
  'sep_token_id': 2,
  **ropes(),
}

# One of each family; the stem of its classes and its fields.
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
  'bert': ('Bert', {**BERT, 'type_vocab_size': 3}),
  'roberta': ('Roberta', BERT),
  'distilbert': ('DistilBert', DISTILBERT),
  'modernbert': ('ModernBert', MODERNBERT),
}

# Changes to one of the above, under one of its heads.
UNUSUAL: list[tuple[str, str, dict[str, Any]]] = [
  ('bert', 'ForMaskedLM', {'type_vocab_size': 1, 'hidden_act': 'gelu_new'}),
  ('roberta', 'ForMaskedLM', {'pad_token_id': 3, 'type_vocab_size': 1, 'hidden_act': 'relu'}),
  ('distilbert', 'ForMaskedLM', {'tie_word_embeddings': False, 'activation': 'silu'}),
  ('distilbert', 'Model', {'sinusoidal_pos_embds': True}),
  ('modernbert', 'ForMaskedLM', {'tie_word_embeddings': False, 'decoder_bias': False}),
  (
    'modernbert',
    'ForSequenceClassification',
    {'norm_bias': True, 'attention_bias': True, 'mlp_bias': True, 'classifier_bias': True},
  ),
  (
    'modernbert',
    'ForSequenceClassification',
    {'classifier_pooling': 'mean', 'classifier_activation': 'relu', 'hidden_activation': 'silu'},
  ),
  ('modernbert', 'Model', {'layer_types': ['full_attention'] * 4}),
  ('modernbert', 'Model', {'layer_types': ['sliding_attention'] * 4, 'local_attention': 2}),
  ('modernbert', 'Model', ropes(rope_type='linear', factor=2.5)),
]

# Changes to one of the above, and other values of single fields that must then show.
TELLING: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
  (
    'bert',
    'ForMaskedLM',
    {},
    {'layer_norm_eps': 0.1, 'num_attention_heads': 6, 'hidden_act': 'quick_gelu'},
  ),
  (
    'roberta',
    'ForMaskedLM',
    {},
    {'layer_norm_eps': 0.1, 'num_attention_heads': 2, 'hidden_act': 'relu', 'pad_token_id': 3},
  ),
  ('distilbert', 'ForMaskedLM', {}, {'n_heads': 2, 'activation': 'relu'}),
  (
    'modernbert',
    'ForSequenceClassification',
    {},
    {
      'norm_eps': 0.1,
      'num_attention_heads': 2,
      'hidden_activation': 'relu',
      'local_attention': 8,
      'layer_types': ['full_attention', *['sliding_attention'] * 3],
      'rope_parameters.full_attention.rope_theta': 1000.0,
      'rope_parameters.sliding_attention.rope_theta': 1000.0,
      'rope_parameters.full_attention': {
        'rope_type': 'linear',
        'rope_theta': 100.0,
        'factor': 2.0,
      },
      'classifier_pooling': 'mean',
      'classifier_activation': 'tanh',
    },
  ),
  ('modernbert', 'ForMaskedLM', {}, {'classifier_activation': 'relu'}),
]

# Values that contradict the weights of a model for masked tokens.
_SIZES = {
  'vocab_size': 41,
  'hidden_size': 28,
  'intermediate_size': 37,
  'num_hidden_layers': 2,
  'tie_word_embeddings': False,
}
SHAPED: dict[str, dict[str, Any]] = {
  'bert': {**_SIZES, 'max_position_embeddings': 21, 'type_vocab_size': 2},
  'roberta': {**_SIZES, 'max_position_embeddings': 21, 'type_vocab_size': 3},
  'distilbert': {
    'vocab_size': 41,
    'dim': 28,
    'hidden_dim': 37,
    'n_layers': 2,
    'max_position_embeddings': 21,
    'tie_word_embeddings': False,
  },
  'modernbert': {
    **_SIZES,
    'num_hidden_layers': 5,
    'norm_bias': True,
    'attention_bias': True,
    'mlp_bias': True,
    'classifier_bias': True,
    'decoder_bias': False,
  },
}


def architecture(family: str, head: str) -> str:
  """The name of the class in transformers."""
  return PLAIN[family][0] + head


def fields(family: str, **changes: Any) -> dict[str, Any]:
  """The fields of the plain model with some changed."""
  return PLAIN[family][1] | changes
