"""The parts of experiments/compare_methods.py.

settings    the configuration, checked
untrained   zero-shot and few-shot: no step is taken
trained     one run of a method at a learning rate and a seed
contest     every strategy: rates tuned, then compared on new seeds; a log to go on from
verdict     differences over the same rows and seeds, with intervals
words       what tables and sentences say
page        the HTML page
"""
