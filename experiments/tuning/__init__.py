"""The loop over sweeps, for experiments/tune.py: a round for one key, then for the next.

start.py        the way through
settings.py     the configuration checked, and where it starts
dimensions.py   what can be tuned, and which values are tried
moves.py        what a round has shown, what comes next, what the budget holds
rounds.py       a round as a sweep, run and read
words.py        each move in words
figures.py, page.py, finish.py   the page and the other files
"""
