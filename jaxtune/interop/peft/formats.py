"""The kinds of adapters that PEFT has a format for."""

from jaxtune.interop.peft.lora import LORA

FORMATS = (LORA,)
