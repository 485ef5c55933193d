"""Virtual tokens in real PEFT: ours move the torch model as they move ours, and theirs ours."""

import functools

import jax
import numpy as np
import pytest

from jaxtune import adapt, interop, models
from tests.interop.adapters import agree

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings('ignore')]
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')

MASK = np.arange(9)[None] < np.array([[9], [7], [4]])
TOKENS = np.where(MASK, np.random.default_rng(0).integers(1, 90, MASK.shape), 0).astype(np.int32)
SIZES = {'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48, 'pad_token_id': 0} | {
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'initializer_range': 0.2,
}
GROUPED = {'num_key_value_heads': 2, 'tie_word_embeddings': True}
BASES = {
  'Llama': ('LlamaForCausalLM', GROUPED),
  'Mistral': ('MistralForCausalLM', GROUPED | {'sliding_window': 4}),
  'Gemma2': ('Gemma2ForCausalLM', GROUPED | {'head_dim': 8, 'sliding_window': 4}),
  'Qwen3': ('Qwen3ForCausalLM', GROUPED | {'head_dim': 16}),
  'Gpt2': (
    'GPT2LMHeadModel',
    {'n_embd': 32, 'n_layer': 3, 'n_head': 4, 'n_positions': 16, 'vocab_size': 96},
  ),
  'Bert': ('BertModel', {'max_position_embeddings': 16}),
  'Roberta': ('RobertaModel', {'max_position_embeddings': 16}),
  'DistilBert': (
    'DistilBertModel',
    {'dim': 32, 'hidden_dim': 48, 'n_layers': 3, 'n_heads': 4, 'max_position_embeddings': 16},
  ),
  'ModernBert': ('ModernBertModel', {'local_attention': 4, 'classifier_pooling': 'mean'}),
}
# Their classifiers have a layer in front, which PEFT leaves out of the files unless it is told.
FRESH = ('DistilBert', 'ModernBert')
AUTO = {
  'SEQ_CLS': transformers.AutoModelForSequenceClassification,
  'TOKEN_CLS': transformers.AutoModelForTokenClassification,
  'CAUSAL_LM': transformers.AutoModelForCausalLM,
  'FEATURE_EXTRACTION': transformers.AutoModel,
}
ENCODERS = [('Bert', task) for task in ('SEQ_CLS', 'TOKEN_CLS', 'FEATURE_EXTRACTION')] + [
  (name, 'SEQ_CLS') for name in ('Roberta', 'DistilBert', 'ModernBert')
]
DECODERS = [(name, 'CAUSAL_LM') for name in ('Llama', 'Mistral', 'Gemma2', 'Qwen3', 'Gpt2')]
PROMPTED = [*DECODERS, ('Llama', 'SEQ_CLS'), *ENCODERS]
# PEFT 0.21 finds no cache in any classifier of transformers 5.24.
PREFIXED = [*DECODERS, ('Bert', 'FEATURE_EXTRACTION')]
METHODS = {
  'prompt': functools.partial(adapt.prompt, tokens=3),
  'p_tuning': functools.partial(adapt.p_tuning, tokens=3, hidden=8),
  'prefix': functools.partial(adapt.prefix, tokens=3),
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  @functools.cache
  def make(name):
    torch.manual_seed(0)
    kind, fields = BASES[name]
    kind = getattr(transformers, kind)
    folder = tmp_path_factory.mktemp(name)
    kind(kind.config_class(**(SIZES | fields))).save_pretrained(folder)
    return folder

  return make


def rows(task, name):
  """Transformers' decoders take the last place of a row for its last token, if given embeddings."""
  return slice(0, 1) if (name, task) == ('Llama', 'SEQ_CLS') else slice(None)


def theirs(model, task, name):
  part = rows(task, name)
  with torch.no_grad():
    tokens, mask = torch.tensor(TOKENS[part]).long(), torch.tensor(MASK[part]).long()
    out = model.eval()(tokens, attention_mask=mask)
  out = (out.logits if hasattr(out, 'logits') else out.last_hidden_state).float().numpy()
  return out[:, -TOKENS.shape[1] :] if out.ndim == 3 else out


def ours(model, params, task, name):
  part = rows(task, name)
  return np.asarray(jax.jit(model.apply)(params, TOKENS[part], MASK[part]))


def opened(folder, task):
  """Our base, a classifier where the task is one."""
  model, params = interop.load(folder)
  if task.endswith('CLS'):
    each = task == 'TOKEN_CLS'
    model, params = models.classifier(jax.random.key(1), model, params, 3, each_token=each)
    params['head'] = jax.tree.map(lambda x: 5 * x, params['head'])
  return model, params


CASES = [(m, *b) for m in METHODS for b in (PREFIXED if m == 'prefix' else PROMPTED)]


@pytest.mark.parametrize('method, name, task', CASES)
def test_ours_in_peft(folders, tmp_path, method, name, task):
  model, params = opened(folders(name), task)
  tuned = METHODS[method](jax.random.key(2), params)
  if method != 'p_tuning':  # as if trained
    tuned[method] = jax.tree.map(lambda x: x + 0.3, tuned[method])
  interop.save_peft(tmp_path / 'out', model, tuned, folders(name))
  peer = AUTO[task].from_pretrained(
    folders(name), **({'num_labels': 3} if task.endswith('CLS') else {})
  )
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out')
  assert peer.active_peft_config.is_prompt_learning
  agree(
    ours(model, params, task, name),
    ours(model, tuned, task, name),
    theirs(peer, task, name),
    f'{name} {task} {method}, ours in PEFT',
    mask=MASK,
  )


CONFIGS = {
  'prompt': ('PromptTuningConfig', {}),
  'p_tuning': ('PromptEncoderConfig', {'encoder_hidden_size': 8}),
  'lstm': (
    'PromptEncoderConfig',
    {'encoder_reparameterization_type': 'LSTM', 'encoder_hidden_size': 8},
  ),
  'prefix': ('PrefixTuningConfig', {}),
  'projected': ('PrefixTuningConfig', {'prefix_projection': True, 'encoder_hidden_size': 8}),
}


@pytest.mark.parametrize(
  'method, name, task',
  [
    (method, name, task)
    for method in CONFIGS
    for name, task in (PREFIXED if method in ('prefix', 'projected') else PROMPTED)
    if method in ('prompt', 'prefix') or name in ('Llama', 'Bert')
  ],
)
def test_theirs_in_ours(folders, tmp_path, method, name, task):
  torch.manual_seed(1)
  classes = {'num_labels': 4} if task.endswith('CLS') else {}
  peer = AUTO[task].from_pretrained(folders(name), **classes)
  base = theirs(peer, task, name)
  kind, fields = CONFIGS[method]
  whole = [{'DistilBert': 'pre_classifier', 'ModernBert': 'head'}[name]] if name in FRESH else None
  if name == 'DistilBert':  # whose names of sizes PEFT does not know
    fields = fields | {'token_dim': 32, 'num_attention_heads': 4, 'num_layers': 3}
  config = getattr(peft, kind)(
    task_type=task, num_virtual_tokens=3, modules_to_save=whole, **fields
  )
  tuned = peft.get_peft_model(peer, config)
  with torch.no_grad():
    for key, parameter in tuned.named_parameters():
      if parameter.requires_grad and 'prompt_encoder' in key:
        parameter.add_(0.3 * torch.randn(parameter.shape))
      elif parameter.requires_grad:  # the head, whose first state is in `base`
        parameter.mul_(5)
  tuned.save_pretrained(tmp_path / 'adapter')
  model, params = interop.adapter_head(tmp_path / 'adapter', *interop.load(folders(name)))
  read = interop.load_peft(tmp_path / 'adapter', model, params)
  agree(
    base,
    theirs(tuned, task, name),
    ours(model, read, task, name),
    f'{name} {task} {method}, PEFT in ours',
    mask=MASK,
  )
  trainable, _ = adapt.trainable(read)
  assert trainable['prefix' if 'pre' in kind.lower() else 'prompt']


@pytest.mark.parametrize('method', METHODS)
def test_generation_is_that_of_peft(folders, tmp_path, method):
  """Ours keeps keys and values; theirs is the whole row again for every token.

  PEFT 0.21's own `generate` on transformers 5.24 is not that of its forward pass.
  """
  model, params = interop.load(folders('Llama'))
  tuned = METHODS[method](jax.random.key(2), params)
  interop.save_peft(tmp_path / 'out', model, tuned, folders('Llama'))
  peer = transformers.AutoModelForCausalLM.from_pretrained(folders('Llama'))
  peer = peft.PeftModel.from_pretrained(peer, tmp_path / 'out').eval()
  tokens = torch.tensor(TOKENS[:1, :5]).long()
  for _ in range(6):
    with torch.no_grad():
      logits = peer(tokens, attention_mask=torch.ones_like(tokens)).logits[:, -1:]
    tokens = torch.cat([tokens, logits.argmax(-1)], dim=1)
  (got,) = models.generate(model, tuned, [TOKENS[0, :5].tolist()], max_tokens=6)
  assert list(got.tokens) == tokens[0, 5:].tolist()
