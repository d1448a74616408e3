"""Boosting trees, by which phrases change the scores of tokens."""
