"""Other tools' files: Hugging Face folders, GGUF, PEFT adapters; one name table a family."""

from jaxtune.interop.labels import load_labels
from jaxtune.interop.load import load
from jaxtune.interop.load_adapter import load_adapter
from jaxtune.interop.save_adapter import save_adapter
from jaxtune.interop.save_hf import save_hf
from jaxtune.interop.source import locate
from jaxtune.interop.tokenizer import SpecialTokens, load_tokenizer, special_tokens

__all__ = [
  'SpecialTokens',
  'load',
  'load_adapter',
  'load_labels',
  'load_tokenizer',
  'locate',
  'save_adapter',
  'save_hf',
  'special_tokens',
]
