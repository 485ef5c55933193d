"""A teacher beside the parameters that learn from it.

It is a frozen part of the parameters, and so is sharded like them; a constant of a compiled step
would be whole on every device.
"""

from jaxtune import tree
from jaxtune.adapt.adapted import Adapted, beside, without
from jaxtune.adapt.lora import without_key
from jaxtune.typing import InputError, Params

TEACHER = 'teacher'  # a top-level name in the parameters


def with_teacher(params: Params, teacher: Params) -> Adapted:
  """The parameters with those of a teacher, frozen, for `losses.distillation`.

  Give the result to `train.prepare` in place of the parameters, and after training take the teacher
  out with `without_teacher`. The teacher may be adapted or quantized; what a step does to train it
  (dropout) does not reach it.

  Args:
    params: of the student, what a method returned; methods come first.
    teacher: of a model of the same family, for the same layout on devices.

  Raises:
    InputError: no method was applied, or the parameters have an entry of that name.
  """
  return beside(params, {TEACHER: dict(teacher)}, 'without_teacher')


def without_teacher(params: Params) -> Adapted:
  """The parameters as they were before `with_teacher`, with what was trained since."""
  return without(params, TEACHER)


def student_and_teacher(params: Params) -> tuple[Params, Params]:
  """The parameters that the student knows, and those of the teacher: `losses.distillation` asks.

  Args:
    params: from `with_teacher`, or what a step makes of them.

  Raises:
    InputError: parameters without a teacher.
  """
  if TEACHER not in params:
    raise InputError(
      'the parameters hold no teacher; make them with adapt.with_teacher(params, teacher)'
    )
  student = {name: leaf for name, leaf in params.items() if name != TEACHER}
  return student, tree.map_weights(lambda _, leaf: without_key(leaf), params[TEACHER])
