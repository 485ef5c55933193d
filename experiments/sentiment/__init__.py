"""Controlled sentiment: continuations of review openings, judged by a classifier of reviews.

The task of section 6 of "Direct Preference Optimization" (Rafailov et al. 2023, arXiv:2305.18290),
with a judge that was tuned here.
"""
