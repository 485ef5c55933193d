r"""Measures a model: one that a run has tuned, or a pretrained one as it is.

  python -m experiments.evaluate --workdir=runs/quickstart
  python -m experiments.evaluate --workdir=runs/quickstart --data=other.csv

  python -m experiments.evaluate --config=configs/few_shot_smollm2.py --config.evaluate.shots=1
  python -m experiments.evaluate --config=configs/perplexity_smollm2.py --output=perplexity.html

With --config nothing is trained: a classifier is measured by its outputs, a language model by the
likelihood that it gives to the words of labels (task=classification) or to texts (causal_lm), and
by what it writes (evaluate.metrics). With both flags the run's tuned model is measured as the
configuration says. The last line is one JSON object with the numbers; docs/evaluate.md explains
them.
"""

from absl import flags
from ml_collections import config_flags

from experiments import entry
from experiments.evaluation import start

CONFIG = config_flags.DEFINE_config_file('config', None, 'What to measure, a file in configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.')
DATA = flags.DEFINE_string('data', '', 'Rows to measure on; the test rows by default.')
OUTPUT = flags.DEFINE_string('output', '', 'Every row as .json or .jsonl, or a page as .html.')


def main() -> int:
  return start.start(CONFIG.value, WORKDIR.value, data=DATA.value, path=OUTPUT.value)


if __name__ == '__main__':
  entry.launch(main)
