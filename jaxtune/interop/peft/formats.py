"""The kinds of adapters that PEFT has a format for."""

from jaxtune.interop.peft.ia3 import IA3_FORMAT
from jaxtune.interop.peft.lora import LORA
from jaxtune.interop.peft.vera import VERA

FORMATS = (LORA, IA3_FORMAT, VERA)
