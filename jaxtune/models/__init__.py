"""Models as pure functions of their parameters; the only package that imports Flax."""

from jaxtune.models.answer import answer
from jaxtune.models.block import BlockConfig
from jaxtune.models.classifier import build, classifier
from jaxtune.models.decoder import Cache, DecoderConfig, decoder
from jaxtune.models.encoder import EncoderConfig, Head, encoder
from jaxtune.models.encoder_decoder import EncoderDecoderConfig, encoder_decoder, shift_right
from jaxtune.models.generate import Generated, Piece, check_prompts, generate, stream
from jaxtune.models.masked_lm import masked_lm
from jaxtune.models.neftune import neftune
from jaxtune.models.own import from_linen, from_nnx
from jaxtune.models.pooling import embed
from jaxtune.models.query_key import query_key_maxima
from jaxtune.models.resize import resize
from jaxtune.models.sample import Sampling, sample
from jaxtune.models.spec import ModelSpec
from jaxtune.models.stack import REMAT
from jaxtune.models.student import student
from jaxtune.models.vision import VisionConfig, pool_image, vision
from jaxtune.tree import cut

__all__ = [
  'REMAT',
  'BlockConfig',
  'Cache',
  'DecoderConfig',
  'EncoderConfig',
  'EncoderDecoderConfig',
  'Generated',
  'Head',
  'ModelSpec',
  'Piece',
  'Sampling',
  'VisionConfig',
  'answer',
  'build',
  'check_prompts',
  'classifier',
  'cut',
  'decoder',
  'embed',
  'encoder',
  'encoder_decoder',
  'from_linen',
  'from_nnx',
  'generate',
  'masked_lm',
  'neftune',
  'pool_image',
  'query_key_maxima',
  'resize',
  'sample',
  'shift_right',
  'stream',
  'student',
  'vision',
]
