"""Fine-tuning methods: params in, params out."""

from jaxtune.adapt.lora import LINEAR, LoRA, lora, merge
from jaxtune.adapt.method import HEAD, Adapted, freeze, full, probe

__all__ = ['HEAD', 'LINEAR', 'Adapted', 'LoRA', 'freeze', 'full', 'lora', 'merge', 'probe']
