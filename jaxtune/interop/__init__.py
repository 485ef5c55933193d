"""Other tools' files: Hugging Face folders, GGUF, PEFT adapters; one name table a family."""

from jaxtune.interop.families import FAMILIES
from jaxtune.interop.images import load_image_scaling
from jaxtune.interop.labels import load_labels
from jaxtune.interop.load import load
from jaxtune.interop.peft import adapter_head, adapter_obstacle, load_peft, save_peft
from jaxtune.interop.pooling import load_pooling
from jaxtune.interop.save_hf import save_hf
from jaxtune.interop.source import locate
from jaxtune.interop.tokenizer import load_tokenizer, special_tokens, tokenizer
from jaxtune.interop.trained import TRAINED, load_trained, merge_obstacle, save_trained
from jaxtune.interop.vocabulary import check_ids, check_vocabulary

__all__ = [
  'FAMILIES',
  'TRAINED',
  'adapter_head',
  'adapter_obstacle',
  'check_ids',
  'check_vocabulary',
  'load',
  'load_image_scaling',
  'load_labels',
  'load_peft',
  'load_pooling',
  'load_tokenizer',
  'load_trained',
  'locate',
  'merge_obstacle',
  'save_hf',
  'save_peft',
  'save_trained',
  'special_tokens',
  'tokenizer',
]
