"""A sweep over many runs in one program, for experiments/sweep.py.

start.py                the way through
settings.py, space.py   the configuration and what is searched, checked
runs.py                 the runs as lanes of one program
search.py               waves of runs, up the rungs
refill.py               lanes that are refilled one by one
study.py                Optuna proposes and remembers
records.py              what a restart needs
show.py, words.py       the terminal
figures.py, page.py     the page, the export, the configuration of the winner
"""
