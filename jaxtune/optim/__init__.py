"""Update rules and schedules: Optax gradient transformations, one idea a file."""

from jaxtune.optim.accumulated_norm import AccumulatedNormState as AccumulatedNormState
from jaxtune.optim.accumulated_norm import adaptive_rate as adaptive_rate
from jaxtune.optim.accumulated_norm import scale_by_accumulated_norm as scale_by_accumulated_norm
from jaxtune.optim.by_name import create as create
from jaxtune.optim.by_name import names as names
from jaxtune.optim.descent import gradient_descent as gradient_descent
from jaxtune.optim.descent import momentum as momentum
from jaxtune.optim.injection import HyperparameterState as HyperparameterState
from jaxtune.optim.injection import hyperparameters as hyperparameters
from jaxtune.optim.injection import set_hyperparameters as set_hyperparameters
from jaxtune.optim.injection import with_hyperparameters as with_hyperparameters
from jaxtune.optim.per_layer import STACKED as STACKED
from jaxtune.optim.per_layer import per_layer as per_layer
from jaxtune.optim.precision import in_precision as in_precision
from jaxtune.optim.schedules import schedule as schedule
from jaxtune.optim.tables import DECAY as DECAY
from jaxtune.optim.tables import by_rules as by_rules
from jaxtune.optim.tables import decay_mask as decay_mask
from jaxtune.optim.tables import multiply_by_rules as multiply_by_rules
