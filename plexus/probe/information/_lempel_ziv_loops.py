"""The compiled loops of `_lempel_ziv`: words per row of a binary array."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["lz76", "lz78"]


@njit(cache=True)
def lz76(rows: NDArray[np.uint8], words: NDArray[np.int64]) -> None:
    """Words of each row, by a suffix automaton that holds the text before the symbol being read."""
    steps = rows.shape[1]
    follow = np.empty((2 * steps + 2, 2), np.int32)  # state, symbol -> state; -1: none
    link = np.empty(2 * steps + 2, np.int32)
    length = np.empty(2 * steps + 2, np.int32)
    for row in range(rows.shape[0]):
        follow[0] = -1
        link[0], length[0] = -1, 0
        states, last = 1, 0
        word, grown, count = 0, 0, 0  # state of the word that grows, its length, words closed
        for step in range(steps):
            symbol = rows[row, step]
            known = follow[word, symbol]
            if known >= 0:
                word, grown = known, grown + 1
            else:
                word, grown, count = 0, 0, count + 1
            new = states
            states += 1
            length[new] = length[last] + 1
            follow[new] = -1
            state = last
            while state >= 0 and follow[state, symbol] < 0:
                follow[state, symbol] = new
                state = link[state]
            if state < 0:
                link[new] = 0
            else:
                target = follow[state, symbol]
                if length[state] + 1 == length[target]:
                    link[new] = target
                else:  # split the target: its shorter texts move to a state of their own
                    short = states
                    states += 1
                    length[short] = length[state] + 1
                    follow[short] = follow[target]
                    link[short] = link[target]
                    link[target] = short
                    link[new] = short
                    while state >= 0 and follow[state, symbol] == target:
                        follow[state, symbol] = short
                        state = link[state]
                    if word == target and grown <= length[short]:
                        word = short
            last = new
        words[row] = count + (1 if grown > 0 else 0)


@njit(cache=True)
def lz78(rows: NDArray[np.uint8], words: NDArray[np.int64]) -> None:
    """Words of each row, by the tree of the words met so far."""
    steps = rows.shape[1]
    follow = np.empty((steps + 1, 2), np.int32)
    for row in range(rows.shape[0]):
        follow[0] = -1
        nodes, node = 1, 0
        for step in range(steps):
            symbol = rows[row, step]
            if follow[node, symbol] >= 0:
                node = follow[node, symbol]
            else:
                follow[node, symbol] = nodes
                follow[nodes] = -1
                nodes += 1
                node = 0
        words[row] = nodes - 1 + (1 if node > 0 else 0)
