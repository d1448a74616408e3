"""Boosting trees: how phrases change the scores of tokens."""
