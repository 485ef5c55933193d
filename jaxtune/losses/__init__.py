"""Objectives: `(params, batch, key) -> Loss`, sums and weights so that accumulation is exact."""

from jaxtune.losses.by_name import OBJECTIVES as OBJECTIVES
from jaxtune.losses.by_name import check_options as check_options
from jaxtune.losses.by_name import create as create
from jaxtune.losses.by_name import options_of as options_of
from jaxtune.losses.causal_lm import causal_lm as causal_lm
from jaxtune.losses.classification import class_cross_entropy as class_cross_entropy
from jaxtune.losses.classification import classification as classification
from jaxtune.losses.loss import Loss as Loss
from jaxtune.losses.loss import Objective as Objective
from jaxtune.losses.mean_squared_error import huber as huber
from jaxtune.losses.mean_squared_error import huber_error as huber_error
from jaxtune.losses.mean_squared_error import mean_squared_error as mean_squared_error
from jaxtune.losses.measured import Measure as Measure
from jaxtune.losses.measured import Measured as Measured
from jaxtune.losses.measured import measured as measured
from jaxtune.losses.multi_label import binary_cross_entropy as binary_cross_entropy
from jaxtune.losses.multi_label import multi_label as multi_label
from jaxtune.losses.penalty import penalized as penalized
from jaxtune.losses.token_classification import token_classification as token_classification
