"""Every key that an experiment knows, with its default. Other files start from this one."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  # What is learned, see experiments/tasks.py: classification, multi_label, regression,
  # token_classification, causal_lm, masked_lm, embedding, preference, unpaired_preference, reward,
  # reinforcement.
  config.task = 'classification'
  # A folder, a .gguf file, a Hugging Face id, or package://NAME/PATH inside an installed package.
  # Empty in pretraining, which makes a model of the sizes under `decoder`.
  config.model = ''
  # Of its frozen weights: bfloat16, float32 or float16; that of its file by default. float32 is
  # several times as fast on a CPU.
  config.dtype = ''
  config.layers = 0  # start from so many of its layers, evenly spaced; 0 for all of them

  config.data = ml_collections.ConfigDict()
  # .csv, .tsv, .jsonl, .json, .parquet, .arrow, .txt, a folder or a pattern of such files,
  # package://NAME/PATH, or hub://OWNER/NAME of a dataset on the Hugging Face Hub.
  config.data.path = ''
  # A mixture: other files, as ('more.jsonl',), and the weight of each, data.path first; without
  # weights they count by their rows. p_i is proportional to w_i^(1/temperature). An epoch is as
  # many rows as all have.
  config.data.also = ()
  config.data.weights = ()
  config.data.temperature = 1.0
  # Read as the steps go on, for files larger than memory; data.valid and data.test are then counts,
  # of the first rows. Rows are shuffled among 4,096 neighbours.
  config.data.stream = False
  # Records that cannot be used: refuse, or skip. No more than the limit are skipped, from 1 up a
  # count, below it a fraction of all; the report says how many, and names the first.
  config.data.bad = 'refuse'
  config.data.bad_limit = 100.0
  config.data.seed = -1  # of the splits and the order of rows; -1 for the run's own seed
  config.data.kind = ''  # of the records, see jaxtune.data.normalize; recognized by the columns
  config.data.text = 'text'  # the column to read
  config.data.label = 'label'  # the column to predict (classification, regression)
  # For causal_lm on pairs: a column, or a template such as 'Q: {question}\nA:'.
  config.data.prompt = ''
  config.data.completion = ''
  # Other fields that have another name in the data, or a template: columns.chosen=better.
  config.data.columns = ml_collections.ConfigDict()
  # What is learned of conversations: assistant (all of its turns), last, completion, or all tokens.
  config.data.supervise = 'assistant'
  # Whether texts and completions end with the token that ends a text; False where they were cut.
  config.data.end = True
  config.data.max_length = 128  # tokens; longer texts are cut at the right, counted and reported
  config.data.valid = 0.05  # held out to choose the best step: a fraction, or a count from 1 up
  config.data.test = 0.1  # held out for the final numbers, never used to choose anything
  # causal_lm: several texts in a row, by first_fit, best_fit, or concat; empty for one
  config.data.pack = ''
  # Widths of training batches, as (64, 128): rows of about one length go together, and a step is
  # compiled for each; empty for max_length alone.
  config.data.buckets = ()

  config.objective = ml_collections.ConfigDict()
  # What is minimized: one of the task's in jaxtune.losses, its first by default; or a function of
  # your own, FILE.py:FUNCTION, which takes the model, and its options by name.
  config.objective.name = ''
  config.objective.options = ml_collections.ConfigDict()  # of the objective, by its own names
  # Of objectives that compare with a reference: start (the model as it was, in every step), or
  # cached (its log-probabilities, computed once).
  config.objective.reference = 'start'
  config.objective.kl = 0.0  # causal_lm: weight of the divergence from the start per token
  config.objective.l2_sp = 0.0  # weight of the squared distance of the weights from their start
  config.objective.neftune = 0.0  # noise on the embeddings of tokens, NEFTune's alpha; 5 is usual
  config.objective.teacher = ''  # distillation: a folder, .gguf, Hub id, or the workdir of a run

  config.method = ml_collections.ConfigDict()
  config.method.name = 'lora'  # any of adapt.METHODS, see docs/adapt.md
  config.method.rank = 16  # of the methods that have one
  config.method.alpha = 32.0  # likewise: the adapter is scaled by alpha / rank
  config.method.select = ''  # regular expression over weight paths; empty for the method's own
  # A folder or Hub id of a PEFT adapter to go on from; its kind, rank and targets then count.
  config.method.adapter = ''
  # nf4, int8 or int4 for a frozen base in so many bits, over which the method goes: lora over nf4
  # is QLoRA.
  config.method.quantize = ''
  config.method.options = ml_collections.ConfigDict()  # others of the method, by its own names

  # Of task reinforcement: the answers that are drawn in every step, and what they are worth.
  config.rollout = ml_collections.ConfigDict()
  # classifier (of a finished run), exact_match, matches, near_length, see experiments/rollouts.py;
  # or FILE.py:FUNCTION, which is called with the options and returns a jaxtune.train.Reward.
  config.rollout.reward = ''
  config.rollout.options = ml_collections.ConfigDict()  # of the reward, by its own names
  config.rollout.group = 8  # answers to each prompt; train.batch_size counts prompts
  config.rollout.max_tokens = 64  # of an answer
  config.rollout.temperature = 1.0
  config.rollout.scale = 'group'  # of advantages: group, batch, or none (Dr. GRPO)
  config.rollout.overlong = 0  # last tokens of max_tokens in which an answer loses reward (DAPO)
  config.rollout.mask_truncated = False  # learn nothing of answers that max_tokens cut off
  config.rollout.kl = 0.0  # of the divergence from the start that is subtracted from the reward
  config.rollout.updates = 1  # steps on each batch of answers

  config.optim = ml_collections.ConfigDict()
  config.optim.name = 'adamw'  # any rule of optim.names()
  config.optim.lr = 1e-3
  config.optim.schedule = 'cosine'  # constant, linear, cosine, or wsd
  config.optim.warmup = 0.06  # a fraction of the steps, or a count from 1 up
  config.optim.weight_decay = 0.0  # of the rules that have it
  config.optim.clip_norm = 1.0  # of the gradient; 0 for no clipping
  # How many running means long a gradient may be, as 10; a longer one, or one that is no number, is
  # skipped and counted. 0 for none: what is no number then ends the run.
  config.optim.skip_spikes = 0.0
  # Decay of a running average of the weights, which is evaluated and exported in their place, as
  # 0.99 for that of about the last 100 steps; 0 for none.
  config.optim.average = 0.0
  config.optim.hyperparameters = ml_collections.ConfigDict()  # others of the rule, by its own names

  config.train = ml_collections.ConfigDict()
  config.train.steps = 0  # updates; 0 to go by epochs
  config.train.epochs = 1.0
  config.train.batch_size = 32  # rows of an update
  config.train.accumulate = 1  # micro-batches that an update is cut into
  config.train.eval_every = 0  # steps; 0 for the end only
  config.train.save_every = 0  # steps; 0 for the end only
  config.train.keep = 2  # checkpoints to go on from; the best stays as well
  config.train.patience = 0  # evaluations without a better one that end the run; 0 for none
  # Steps skipped in a row after which the run goes back to the checkpoint before them, and on with
  # the rows that come next; 0 for never.
  config.train.rollback = 0
  config.train.log_every = 1  # steps between lines of metrics.jsonl
  config.train.profile = ''  # steps to trace, as '10-12', or '3' for so many behind the first
  # Type of activations and of the products; what trains stays float32. Empty for the weights' own.
  config.train.dtype = ''
  # What of a layer the backward pass computes again: none, products (what lies between products),
  # or full, which holds least and takes about a fifth longer.
  config.train.remat = 'products'
  config.train.chunk = 0  # predictions whose logits are held at a time; 0 for as many as take 8 MB

  config.eval = ml_collections.ConfigDict()
  config.eval.batch_size = 64

  # experiments.evaluate of a language model. With task=classification it asks for the label of each
  # test row and takes the one whose word is likeliest, see jaxtune.data.few_shot.
  config.evaluate = ml_collections.ConfigDict()
  config.evaluate.rows = 0  # of the test rows; 0 for all
  config.evaluate.prompt = '{text}'  # a template over the columns of a row
  config.evaluate.instruction = ''  # said once, ahead of everything
  config.evaluate.words = ''  # of the labels, as 0=negative,1=positive; the labels by default
  config.evaluate.shots = 0  # training rows shown with their words, as many of each label
  config.evaluate.seed = 0  # of which rows are shown
  config.evaluate.chat = True  # as messages, where the model has a chat template
  # likelihood: of the word; per_token: likewise, divided by its tokens; calibrated: over what the
  # model says to texts without content (arXiv:2102.09690); batch_calibrated: over what it says to
  # all of the rows (arXiv:2309.17249), where each label has about as many
  config.evaluate.score = 'likelihood'
  # Of what is written behind data.prompt, beside data.completion: exact_match, token_f1, bleu,
  # chrf, rouge1, rouge2, rougeL. Empty for no writing.
  config.evaluate.metrics = ''
  config.evaluate.new_tokens = 32  # written at most

  # experiments.sweep: many runs of this configuration in one program, see docs/sweep.md.
  config.sweep = ml_collections.ConfigDict()
  # What is searched, a line a key, as ('optim.lr 1e-4..1e-2 log', 'method.rank 4, 16').
  config.sweep.space = ()
  config.sweep.candidates = 16  # settings that are tried, first that of this configuration
  config.sweep.lanes = 8  # runs side by side
  config.sweep.sampler = 'tpe'  # Optuna's that proposes: random, tpe, or grid for every combination
  # Steps after which candidates are first judged: a fraction of train.steps, or a count from 1 up;
  # one in `factor` goes on, for `factor` times as many steps. 1.0 for no judgement before the end.
  config.sweep.first = 0.11
  config.sweep.factor = 3.0
  # halving, by whole rungs; or asha: a lane is refilled as soon as its run is judged or dead, and
  # each has the batches of a run alone.
  config.sweep.scheduler = 'halving'
  config.sweep.seeds = 3  # with which the winner and this configuration are run at the end
  # Optuna's storage, which several machines may share: the URL of a database, or journal:FILE; a
  # file in the work directory by default.
  config.sweep.storage = ''
  config.sweep.study = 'sweep'  # its name there

  # experiments.tune: sweeps over one key after the other while it pays, see docs/sweep.md; lanes,
  # seeds and storage are those of `sweep`.
  config.tune = ml_collections.ConfigDict()
  config.tune.steps = 0  # the budget: training steps of all runs together; 0 for no such limit
  config.tune.minutes = 30.0  # likewise; a round begins only if it is expected to end in time
  # What is tuned, in this order; a learning rate that comes again is searched in finer steps.
  config.tune.order = ('optim.lr', 'method.rank', 'optim.warmup', 'optim.weight_decay')
  config.tune.order += ('method.options.dropout', 'optim.lr')

  config.log = ml_collections.ConfigDict()
  config.log.tensorboard = True  # events in the work directory, where tensorboardX is installed
  config.log.wandb = ''  # a Weights & Biases project to log to as well

  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # devices that hold replicas; -1 for all that are left
  config.mesh.fsdp = 1  # devices that parameters and optimizer state are cut over
  config.mesh.expert = 1  # devices that the experts of a mixture are spread over
  config.mesh.sequence = 1  # devices that the tokens of a row are spread over
  config.mesh.tensor = 1  # devices that every product is cut over
  # Axes of parameters that stay whole where tensor, say, does not divide them: kv_heads, vocab, ...
  config.mesh.replicate = ()

  config.export = ml_collections.ConfigDict()
  config.export.base = ''  # the base model's name in the exported adapter; `model` by default

  # Pretraining only: the sizes of the model, and of the tokenizer that is trained on the data.
  config.decoder = ml_collections.ConfigDict()
  config.decoder.vocabulary = 4096
  config.decoder.width = 256
  config.decoder.hidden = 704
  config.decoder.layers = 4
  config.decoder.heads = 4
  config.decoder.kv_heads = 2
  return config
