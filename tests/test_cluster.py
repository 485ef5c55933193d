"""The job files start what is there, with the names and codes that the code knows."""

import importlib.util
import pathlib
import re
import subprocess

import pytest
import yaml

from experiments import entry, processes

FOLDER = pathlib.Path(__file__).parents[1] / 'docs/cluster'
SCRIPTS, MANIFESTS = sorted(FOLDER.glob('*.sh')), sorted(FOLDER.glob('*.yaml'))


@pytest.mark.parametrize('file', [*SCRIPTS, *MANIFESTS], ids=lambda file: file.name)
def test_a_job_starts_a_script_and_a_configuration_that_exist(file):
  text = file.read_text()
  (script,) = re.findall(r'experiments\.\w+', text)
  (config,) = re.findall(r'--config=(\S+)', text)
  assert importlib.util.find_spec(script) and (FOLDER.parents[1] / config).is_file()
  assert f'docs/cluster/{file.name}' in text and file.name in (FOLDER / 'README.md').read_text()


@pytest.mark.parametrize('file', SCRIPTS, ids=lambda file: file.name)
def test_scripts_start_again_on_the_codes_for_that(file):
  subprocess.run(['bash', '-n', file], check=True)
  (codes,) = re.findall(r'^ *(\d+(?: \| \d+)+)\)', file.read_text(), re.MULTILINE)
  assert {int(code) for code in codes.split(' | ')} == {entry.PREEMPTED, 128 + 6, 128 + 9, 128 + 15}


@pytest.mark.parametrize('file', MANIFESTS, ids=lambda file: file.name)
def test_manifests_say_who_is_there(file):
  *_, job = yaml.safe_load_all(file.read_text())
  name = job['metadata']['name']
  if job['kind'] == 'JobSet':
    (replicated,) = job['spec']['replicatedJobs']
    name, job = f'{name}-{replicated["name"]}-0', replicated['template']
  spec = job['spec']
  (container,) = spec['template']['spec']['containers']
  given = {variable['name']: variable for variable in container['env']}
  assert set(given) == {processes.ADDRESS, processes.COUNT, processes.INDEX}
  assert given[processes.COUNT]['value'] == str(spec['completions']) == str(spec['parallelism'])
  assert given[processes.ADDRESS]['value'].startswith(f'{name}-0.jaxtune:')
  for rule in spec['podFailurePolicy']['rules']:
    if 'onExitCodes' in rule:
      assert rule['onExitCodes']['containerName'] == container['name']
      again = rule['action'] == 'Ignore'
      assert rule['onExitCodes']['values'] == [entry.PREEMPTED if again else 1]


def test_the_readme_knows_every_code():
  codes = re.findall(r'^\| ([\d, ]+) \|', (FOLDER / 'README.md').read_text(), re.MULTILINE)
  assert {entry.PREEMPTED, entry.INTERRUPTED} <= {int(x) for row in codes for x in row.split(',')}
