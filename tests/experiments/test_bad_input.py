"""Everything that a user can get wrong is one line naming place, value and remedy, without a trace.

Each case prepares files in a folder and gives the configuration's values and what the line says.
"""

import json
import pathlib
import pickle
import re
import shutil

import pytest
import safetensors.numpy

from jaxtune import data
from jaxtune.typing import InputError

PAIRS = {'data.prompt': 'text', 'data.completion': 'label'}
CASES = {}


def case(match, task='classification'):
  def add(function):
    CASES[function.__name__] = function, task, match
    return function

  return add


def rows(folder, lines, name='rows.csv'):
  (folder / name).write_text('\n'.join(lines) + '\n')
  return {'data.path': str(folder / name), 'data.valid': 0.0, 'data.test': 0.0}


def model(folder, files, name='encoder', **fields):
  """A copy of a tiny model, fields of its config.json changed."""
  copy = pathlib.Path(shutil.copytree(files / name, folder / 'model'))
  raw = json.loads((copy / 'config.json').read_text())
  (copy / 'config.json').write_text(json.dumps(raw | fields))
  return copy


@case(r'filmz\.csv: no such file; did you mean films\.csv\?')
def missing_file(folder, files):
  return {'data.path': str(files / 'filmz.csv')}


@case(r'empty; give a file with --config\.data\.path')
def no_file_given(folder, files):
  return {'data.path': ''}


@case(r'rows\.csv: no records in the file')
def empty_file(folder, files):
  return rows(folder, [])


@case(r'rows\.csv: no records')
def header_alone(folder, files):
  return rows(folder, ['text,label'])


@case(r"column 'label' holds one class only, 'good', in all 2 rows.*add rows of another class")
def one_class(folder, files):
  return rows(folder, ['text,label', 'a,good', 'b,good'])


@case(r"column 'text' is empty in all 2 rows; choose a column of text")
def all_texts_empty(folder, files):
  return rows(folder, ['text,label', ',good', '" ",bad'])


@case(r'text is empty in all 1 rows', task='causal_lm')
def all_texts_of_a_language_model_empty(folder, files):
  return rows(folder, ['text,label', ',good'])


@case(r'rows\.csv: line 3: byte 0xe9 at offset 25 is not UTF-8; save the file as UTF-8')
def not_utf8(folder, files):
  (folder / 'rows.csv').write_bytes('text,label\nplain,good\ncafé,bad\n'.encode('latin1'))
  return {'data.path': str(folder / 'rows.csv')}


@case(r"films\.csv: there is no column 'texts'; it has text, label, stars; did you mean 'text'")
def no_text_column(folder, files):
  return {'data.text': 'texts'}


@case(r"there is no column 'sentiment'; it has text, label, stars")
def no_label_column(folder, files):
  return {'data.label': 'sentiment'}


@case(
  r"films\.csv: there is no column 'question'; it has text, label",
  'causal_lm',
)
def no_prompt_column(folder, files):
  return {'data.prompt': 'Q: {question}', 'data.completion': 'label'}


@case(r'rows\.jsonl: line 2: not JSON .*column 10', 'regression')
def jsonl_line_is_not_json(folder, files):
  return rows(folder, ['{"text": "a", "stars": 1}', '{"text": b}'], 'rows.jsonl')


@case(r"rows\.csv: line 3: column 'label' is 'many', which is not a finite number", 'regression')
def target_is_no_number(folder, files):
  return rows(folder, ['text,stars', 'one,1', 'two,many'])


@case(r"column 'label' is empty; give the row a label or remove it")
def a_label_is_empty(folder, files):
  return rows(folder, ['text,label', 'a,good', 'b,', 'c,bad'])


@case(r"has the class '\w+' of 'label', which train lacks")
def a_label_of_the_test_rows_alone(folder, files):
  # 40 rows, of which the seeded split puts the one with a third class into the test rows.
  lines = [f'text {i},{"ab"[i % 2]}' for i in range(40)]
  (first, *_) = data.split([{'n': i} for i in range(40)], {'valid': 0, 'test': 16}, 0)['test']
  lines[first['n']] = f'text {first["n"]},c'
  return rows(folder, ['text,label', *lines]) | {'data.test': 16.0}


@case(r'data\.max_length is 49, but the model has 48 positions; set it to 48 or less')
def longer_than_the_positions(folder, files):
  return {'data.max_length': 49}


@case(r'max_length is 2, but the tokenizer adds 2 special tokens.*at least 3')
def no_room_beside_special_tokens(folder, files):
  return {'data.max_length': 2}


@case(
  r'no supervised token: of 40 rows 0 have .*max_length 8; raise it or shorten the prompts',
  'causal_lm',
)
def zero_supervised_tokens(folder, files):
  return PAIRS | {'data.max_length': 8}


@case(r'leaves 0 to train on; ask for less')
def nothing_left_to_train_on(folder, files):
  return {'data.test': 64.0, 'data.valid': 0.0}


@case(r'rank is 33, but .* is a 32x32 matrix: choose a rank from 1 to 32')
def rank_above_the_matrix(folder, files):
  return {'method.rank': 33}


@case(r"select 'atn' matches no parameter")
def targets_without_a_match(folder, files):
  return {'method.select': 'atn'}


@case(r"method\.name is 'lroa'; choose one of full, freeze, probe")
def unknown_method(folder, files):
  return {'method.name': 'lroa'}


@case(r"task is 'clasification'; choose one of")
def unknown_task(folder, files):
  return {'task': 'clasification'}


@case(r"optimizer 'adamm' is unknown; the nearest are adam")
def unknown_optimizer(folder, files):
  return {'optim.name': 'adamm'}


@case(r"schedule 'cosin' is unknown; did you mean 'cosine'")
def unknown_schedule(folder, files):
  return {'optim.schedule': 'cosin'}


@case(r'warmup of 4 .*do not fit in 4 steps')
def warmup_of_all_steps(folder, files):
  return {'optim.warmup': 4.0}


@case(r'train\.steps and train\.epochs are both zero')
def no_steps(folder, files):
  return {'train.steps': 0, 'train.epochs': 0.0}


@case(r'train\.accumulate is 3, which does not divide train\.batch_size 8')
def accumulation_that_does_not_divide(folder, files):
  return {'train.accumulate': 3}


@case(r'12 rows cannot be spread over 8 devices.*multiple of 8')
def batch_that_the_devices_do_not_divide(folder, files):
  return {'train.batch_size': 12}


@case(r'eval\.batch_size is 12, which cannot be spread over 8 devices; .*multiple of 8')
def evaluation_batch_that_the_devices_do_not_divide(folder, files):
  return {'eval.batch_size': 12}


@case(r'mesh data=3 does not fit 8 device.*must multiply to 8')
def mesh_that_does_not_fit(folder, files):
  return {'mesh.data': 3}


@case(r'mesh data=2 x fsdp=2 x tensor=4 does not fit 8 device')
def mesh_larger_than_the_devices(folder, files):
  return {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 4}


@case(r"attn/k: axis 'kv_heads' has 4 entries, which tensor=8 does not divide; .*mesh\.replicate")
def heads_that_the_mesh_does_not_divide(folder, files):
  return {'mesh.tensor': 8, 'mesh.replicate': ('vocab',)}


@case(r"mesh\.replicate: unknown axis 'layers'; known: embed, heads, ")
def unknown_axis_to_replicate(folder, files):
  return {'mesh.tensor': 2, 'mesh.replicate': ('layers',)}


@case(r'data\.max_length is 15, which mesh\.sequence=2 does not divide; set it to 16')
def tokens_that_the_mesh_does_not_divide(folder, files):
  return {'mesh.sequence': 2, 'data.max_length': 15}


@case(r"'label' cannot be packed.*set pack to False")
def packed_labels(folder, files):
  return {'data.pack': 'first_fit'}


@case(
  r'task is causal_lm, but .*encoder.* is an encoder for features; use a model for causal_lm',
  'causal_lm',
)
def language_model_from_an_encoder(folder, files):
  return {'model': str(files / 'encoder')}


@case(r"model '.*nothing' is neither a folder, a file nor a reachable Hub id")
def no_model_there(folder, files):
  return {'model': str(folder / 'nothing')}


@case(r"package://no_such_package/model: the package 'no_such_package' is not installed")
def model_of_a_missing_package(folder, files):
  return {'model': 'package://no_such_package/model'}


@case(r'model: has no tokenizer\.json; write one with transformers')
def no_tokenizer(folder, files):
  (model(folder, files) / 'tokenizer.json').unlink()
  return {'model': str(folder / 'model')}


@case(r'tokenizer\.json: is not a tokenizer')
def damaged_tokenizer(folder, files):
  (model(folder, files) / 'tokenizer.json').write_text('{"version": ')
  return {'model': str(folder / 'model')}


@case(r'weights only as pickle \(pytorch_model\.bin\).*safetensors')
def weights_as_pickle(folder, files):
  copy = model(folder, files)
  (copy / 'model.safetensors').unlink()
  (copy / 'pytorch_model.bin').write_bytes(b'\x80\x04cos\nsystem\n')
  return {'model': str(copy)}


@case(r'model\.safetensors: is damaged or cut short .*download it again')
def weights_cut_short(folder, files):
  weights = model(folder, files) / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-1000])
  return {'model': str(folder / 'model')}


@case(r'model\.safetensors: tensor .* has the shape \[32, 48\], but the config .*\[32, 64\]')
def shape_that_does_not_fit(folder, files):
  return {'model': str(model(folder, files, intermediate_size=64))}


@case(r'encoder\.layer\.2\.')
def a_layer_that_is_not_in_the_file(folder, files):
  return {'model': str(model(folder, files, num_hidden_layers=3))}


@case(r"config\.json: model_type is 'mamba'; known: bert, .*llama")
def unknown_model_type(folder, files):
  return {'model': str(model(folder, files, model_type='mamba'))}


@case(r'config\.json: is not JSON')
def damaged_model_config(folder, files):
  (model(folder, files) / 'config.json').write_text('{"model_type": "bert",')
  return {'model': str(folder / 'model')}


@case(r'has no config\.json; give the folder of a Hugging Face model')
def folder_of_something_else(folder, files):
  return {'model': str(folder)}


def assert_one_line(error):
  message = str(error.value)
  assert message and '\n' not in message and len(message) < 800, message


@pytest.mark.parametrize('name', CASES)
def test_bad_input(name, files, configure, launch, tmp_path):
  prepare, task, match = CASES[name]
  (tmp_path / 'in').mkdir()
  config = configure(task, prepare(tmp_path / 'in', files))
  with pytest.raises(InputError, match=match) as caught:
    launch(config, tmp_path / 'run')
  assert_one_line(caught)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_long_texts_are_cut_counted_and_reported(configure, launch, tmp_path, capsys):
  lines = ['text,label'] + [f'{"word " * (4 + 40 * (i < 5))}{i},{"ab"[i % 2]}' for i in range(64)]
  values = rows(tmp_path, lines) | {'data.test': 16.0, 'data.valid': 8.0}
  assert launch(configure(values=values), tmp_path / 'run') == 0
  page = (tmp_path / 'run' / 'report.html').read_text()
  cut = re.findall(
    r'(\d+) of (?:32 train|8 valid|16 test) rows are longer than 16 tokens and were cut', page
  )
  assert sum(map(int, cut)) == 5  # four steps reach 32 of the 40 rows to train on


def test_nothing_is_unpickled(configure, launch, tmp_path, files):
  class Trap:
    def __reduce__(self):
      return pathlib.Path.touch, (tmp_path / 'sprung',)

  copy = model(tmp_path, files)
  tensors = safetensors.numpy.load_file(copy / 'model.safetensors')
  assert tensors
  (copy / 'model.safetensors').write_bytes(pickle.dumps(Trap()))
  with pytest.raises(InputError, match='damaged or cut short'):
    launch(configure(values={'model': str(copy)}), tmp_path / 'run')
  assert not (tmp_path / 'sprung').exists()
