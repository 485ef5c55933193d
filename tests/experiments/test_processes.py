"""One process is all there is, unless the environment says otherwise; two are in tests/faults."""

import socket

import pytest

from experiments import processes
from jaxtune.typing import InputError


@pytest.fixture
def environment(monkeypatch):
  """`environment(**variables)`: these, and no others that say anything of processes."""
  for name in (processes.ADDRESS, processes.COUNT, processes.INDEX, 'SLURM_STEP_NUM_TASKS'):
    monkeypatch.delenv(name, raising=False)
  return lambda **variables: [monkeypatch.setenv(*pair) for pair in variables.items()]


@pytest.mark.parametrize(
  'variables',
  [
    {},
    {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0', 'JAX_COORDINATOR_ADDRESS': 'host:1'},
    {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '4'},  # a shell in an allocation for four
    {'KUBERNETES_SERVICE_HOST': 'host'},  # any pod has it
  ],
)
def test_one_process_is_as_it_is(environment, monkeypatch, variables):
  environment(**variables)
  monkeypatch.setattr('jax.distributed.initialize', None)
  with processes.joined():
    assert processes.first() and processes.decided(lambda: 'any') == 'any'
  with pytest.raises(InputError, match='own'), processes.joined():
    raise InputError('own')


@pytest.mark.parametrize(
  ('address', 'count', 'match'),
  [
    ('host:1', 'two', "JAX_NUM_PROCESSES is 'two'; it must be a whole number"),
    ('host', '2', "JAX_COORDINATOR_ADDRESS is 'host'; it must be host:port"),
    ('host:99999', '2', "is 'host:99999'; it must be host:port"),
  ],
)
def test_variables_that_make_no_sense(environment, address, count, match):
  environment(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=count, JAX_PROCESS_ID='0')
  with pytest.raises(InputError, match=match), processes.joined():
    pass


def test_a_port_that_is_taken(environment):
  with socket.create_server(('', 0)) as taken:
    address = f'host:{taken.getsockname()[1]}'
    environment(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='0')
    with pytest.raises(InputError, match=f'{address}, and .* in use'), processes.joined():
      pass


def test_a_run_that_has_begun_cannot_meet_others(environment):
  environment(JAX_NUM_PROCESSES='2', JAX_PROCESS_ID='1', JAX_COORDINATOR_ADDRESS='host:1')
  with pytest.raises(InputError, match='set JAX_COORDINATOR_ADDRESS'), processes.joined():
    pass
