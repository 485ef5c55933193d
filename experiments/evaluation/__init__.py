"""What experiments/evaluate.py measures.

start.py       the model is opened, the rows are found
measured.py    what came out: scores, and one line for each row
batches.py     all rows through a compiled function
by_head.py     a classifier or regressor by its outputs
by_words.py    a language model asked for labels, by the likelihood of their words
by_text.py     a language model by the likelihood of texts
by_writing.py  a language model by what it writes
output.py      what is printed and written
"""
