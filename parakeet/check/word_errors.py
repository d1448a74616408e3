"""Word error rate of a transcript."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """Return the words that count: lower case, without punctuation other than apostrophes."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return the least number of substituted, missing and added words, and the words of the reference."""
    expected, heard = words_of(reference), words_of(hypothesis)
    # Levenshtein distance, one row of the table at a time.
    row = list(range(len(heard) + 1))
    for position, word in enumerate(expected, 1):
        previous, row[0] = row[0], position
        for column, other in enumerate(heard, 1):
            previous, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, previous + (word != other)),
            )
    return row[-1], len(expected)
