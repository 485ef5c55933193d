"""A fair comparison of update rules, for experiments/compare_optimizers.py.

settings.py             the configuration, checked
tasks.py, language.py   what is trained
lanes.py, memory.py     many runs in one compiled program, as many as fit
log.py                  metrics.jsonl, which a comparison goes on from
contest.py              rates tuned, then rules compared on other seeds
verdict.py              which rule is better, and how sure that is
effects.py              three published effects at small scale
words.py, summary.py    what was seen, in sentences and on the terminal
figures.py, page.py     what was seen, on a page
"""
