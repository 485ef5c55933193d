"""Adapters in PEFT's files, out and in."""

from jaxtune.interop.peft.load import adapter_head, load_peft
from jaxtune.interop.peft.save import adapter_obstacle, save_peft

__all__ = ['adapter_head', 'adapter_obstacle', 'load_peft', 'save_peft']
