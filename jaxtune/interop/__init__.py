"""Other tools' files: Hugging Face folders, GGUF, PEFT adapters; one name table a family."""

from jaxtune.interop.chat import render_chat
from jaxtune.interop.families import FAMILIES
from jaxtune.interop.images import load_image_scaling
from jaxtune.interop.labels import load_labels
from jaxtune.interop.load import load
from jaxtune.interop.load_adapter import load_adapter
from jaxtune.interop.pooling import load_pooling
from jaxtune.interop.save_adapter import adapter_obstacle, save_adapter
from jaxtune.interop.save_hf import save_hf
from jaxtune.interop.source import locate
from jaxtune.interop.tokenizer import SpecialTokens, load_tokenizer, special_tokens
from jaxtune.interop.vocabulary import check_ids, check_vocabulary

__all__ = [
  'FAMILIES',
  'SpecialTokens',
  'adapter_obstacle',
  'check_ids',
  'check_vocabulary',
  'load',
  'load_adapter',
  'load_image_scaling',
  'load_labels',
  'load_pooling',
  'load_tokenizer',
  'locate',
  'render_chat',
  'save_adapter',
  'save_hf',
  'special_tokens',
]
