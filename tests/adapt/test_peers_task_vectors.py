"""Merged adapters are those of PEFT's `add_weighted_adapter`, from the same files."""

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')
from peft.utils import merge_utils  # noqa: E402

from jaxtune import adapt, interop  # noqa: E402
from jaxtune.adapt.task_vectors import merge_tensors  # noqa: E402
from tests.interop.adapters import tiny_llama  # noqa: E402

pytestmark = [
  pytest.mark.peers,
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  pytest.mark.filterwarnings('ignore::UserWarning'),
  pytest.mark.filterwarnings('ignore::FutureWarning'),
]

IDS = np.random.default_rng(0).integers(1, 96, (3, 10))


def logits(model):
  model.eval()
  with torch.no_grad():
    return model(input_ids=torch.tensor(IDS)).logits.numpy()


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A folder of a random Llama, and of two adapters on it, of rank 4 and of alpha 8 and 12."""
  folder = tmp_path_factory.mktemp('two')
  tiny_llama(folder / 'base', layers=2)
  for name, alpha in (('one', 8), ('two', 12)):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / 'base')
    lora = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=['q_proj', 'up_proj'])
    model = peft.get_peft_model(base, lora)
    with torch.no_grad():
      for path, parameter in model.named_parameters():
        if 'lora_B' in path:
          parameter.normal_(0, 0.2)
    model.save_pretrained(folder / name)
  return folder


METHODS = {
  'cat': {},
  'linear': {},
  'svd': {'rank': 3},
  'ties': {'density': 0.6},
  'magnitude_prune': {'density': 0.6},
  'ties_svd': {'density': 0.5, 'rank': 4},
  'magnitude_prune_svd': {'density': 0.5},
  'dare_linear': {'density': 1.0},  # other densities: other noise
  'dare_ties': {'density': 1.0},
}


SIGNED = [
  (method, sign)
  for method in METHODS
  for sign in ('total', 'frequency')
  if sign == 'total' or 'ties' in method  # the others elect nothing
]


@pytest.mark.parametrize('weights', [[0.7, 0.5], [1.0, -0.4]])
@pytest.mark.parametrize('method, sign', SIGNED)
def test_merged_adapters_are_those_of_peft(two, method, weights, sign):
  options = METHODS[method]
  base = transformers.AutoModelForCausalLM.from_pretrained(two / 'base')
  plain = logits(base)
  peer = peft.PeftModel.from_pretrained(base, two / 'one', adapter_name='one')
  peer.load_adapter(two / 'two', adapter_name='two')
  peer.add_weighted_adapter(
    ['one', 'two'],
    weights,
    'merged',
    method,
    svd_rank=options.get('rank'),
    density=options.get('density'),
    majority_sign_method=sign,
  )
  peer.set_adapter('merged')
  want = logits(peer)

  model, params = interop.load(two / 'base')
  both = [interop.load_peft(two / name, model, params) for name in ('one', 'two')]
  merged = adapt.merge_adapters(both, weights, method, **options, sign=sign, key=jax.random.key(0))
  got = np.asarray(jax.jit(model.apply)(merged, IDS))
  moved, error = np.abs(want - plain).max(), np.abs(got - want).max()
  print(f'{method} {weights} {sign}: the adapter moves by {moved:.3f}, they differ by {error:.2e}')
  assert moved >= 0.1
  assert error <= 1e-3 * moved


@pytest.mark.parametrize('sign', ['total', 'frequency'])
@pytest.mark.parametrize('density', [0.3, 1.0])
def test_the_rules_are_those_of_peft(density, sign):
  rng = np.random.default_rng(0)
  tensors = [rng.normal(size=(7, 9)).astype(np.float32) for _ in range(3)]
  weights = [1.0, 0.5, -0.7]
  theirs = [torch.tensor(t) for t in tensors], torch.tensor(weights)
  pairs = {
    'linear': merge_utils.task_arithmetic(*theirs),
    'magnitude_prune': merge_utils.magnitude_prune(*theirs, density),
    'ties': merge_utils.ties(*theirs, density, sign),
  }
  if density == 1.0:
    pairs['dare_linear'] = merge_utils.dare_linear(*theirs, density)
    pairs['dare_ties'] = merge_utils.dare_ties(*theirs, density, sign)
  for method, want in pairs.items():
    got = merge_tensors(tensors, weights, method, density, sign, jax.random.key(0))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-6, err_msg=method)


def test_dare_is_as_noisy_as_peft():
  """The same share is kept and the same factor applied; the draws are others."""
  ones = [np.ones((200, 200), np.float32)] * 2
  ours = np.asarray(merge_tensors(ones, [1.0, 1.0], 'dare_linear', 0.3, key=jax.random.key(0)))
  torch.manual_seed(0)
  theirs = merge_utils.dare_linear([torch.tensor(x) for x in ones], torch.ones(2), 0.3).numpy()
  np.testing.assert_allclose(np.unique(ours), np.unique(theirs), rtol=1e-6)
  np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=0.02)
  np.testing.assert_allclose(ours.std(), theirs.std(), rtol=0.02)


def test_a_merged_adapter_opens_in_peft(two, tmp_path):
  model, params = interop.load(two / 'base')
  both = [interop.load_peft(two / name, model, params) for name in ('one', 'two')]
  merged = adapt.merge_adapters(both, [0.5, 0.8], 'cat')
  interop.save_peft(tmp_path / 'out', model, merged, two / 'base')
  base = transformers.AutoModelForCausalLM.from_pretrained(two / 'base')
  peer = peft.PeftModel.from_pretrained(base, tmp_path / 'out')
  np.testing.assert_allclose(logits(peer), jax.jit(model.apply)(merged, IDS), atol=2e-4)
