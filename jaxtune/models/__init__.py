"""Models as pure functions of their parameters; the only package that imports Flax."""

from jaxtune.models.classifier import build, classifier
from jaxtune.models.decoder import DecoderConfig, decoder
from jaxtune.models.encoder import EncoderConfig, encoder
from jaxtune.models.own import from_linen, from_nnx
from jaxtune.models.query_key import query_key_maxima
from jaxtune.models.spec import ModelSpec
from jaxtune.models.stack import cut

__all__ = [
  'DecoderConfig',
  'EncoderConfig',
  'ModelSpec',
  'build',
  'classifier',
  'cut',
  'decoder',
  'encoder',
  'from_linen',
  'from_nnx',
  'query_key_maxima',
]
