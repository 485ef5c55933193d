"""The kinds of adapters that PEFT has a format for."""

from jaxtune.interop.peft.adalora import ADALORA
from jaxtune.interop.peft.ia3 import IA3_FORMAT
from jaxtune.interop.peft.loha import LOHA
from jaxtune.interop.peft.lokr import LOKR
from jaxtune.interop.peft.lora import LORA
from jaxtune.interop.peft.norms import NORMS
from jaxtune.interop.peft.prompts import P_TUNING, PREFIX_TUNING, PROMPT_TUNING
from jaxtune.interop.peft.tokens import TOKENS
from jaxtune.interop.peft.vera import VERA

FORMATS = (
  LORA,
  P_TUNING,
  PROMPT_TUNING,
  PREFIX_TUNING,
  LOHA,
  LOKR,
  ADALORA,
  IA3_FORMAT,
  VERA,
  TOKENS,
  NORMS,
)
