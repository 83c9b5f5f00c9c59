"""How the tables of the kernels in `triton_kernels.py` are laid out.

An entry's rank is one integer: its magnitude's pattern above, its index, counted from the end,
below. No two are equal, and of equal magnitudes the smaller index ranks higher, so a selection is
the k entries of highest rank. Ranks are compared as integers, so nothing here flushes subnormals.

What is known of a tensor's k-th rank lies in its row of `state`: it is in [LOW, HIGH), where WANTED
entries are to be taken from the top, and all ranks from TOP on have been moved. LOW == HIGH says
that every rank from LOW on is selected. FILLED counts the entries in `candidates`; HELD says how
many there will be, or is -1 if there is no room for them: then the moment itself is read again.
GUESS is the magnitude at which the last step's selection ended.
"""

import triton.language as tl

PARAM, GRAD, FIRST_MOMENT, SECOND_MOMENT, STEP = map(tl.constexpr, range(5))  # addresses
SIZE, CHOSEN, FIRST_BLOCK, FIRST_CANDIDATE, ROOM = map(tl.constexpr, range(5, 10))
COLUMNS = tl.constexpr(10)
"""A row of `table`, one for each tensor; candidates are counted over all tensors, as blocks are."""

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = map(tl.constexpr, range(5))
OPTIONS = tl.constexpr(5)
"""A row of `options`."""

TAKE1, KEEP1, TAKE2, KEEP2, SHRINK, STEP_SIZE, CORRECTION, EPSILON = map(tl.constexpr, range(8))
COEFFICIENTS = tl.constexpr(8)
"""A row of `coefficients`: `adamw.py` says what they are."""

LOW, HIGH, TOP, WANTED, HELD, FILLED, GUESS = map(tl.constexpr, range(7))
STATES = tl.constexpr(7)
"""A row of `state`."""

BINS = tl.constexpr(256)
ROUNDS = 8
"""After the first histogram, as many of `BINS` bins tell any two of 2**63 ranks apart."""

# The first histogram is fine around the last guess: 64 bins for each doubling, over two doublings
# to either side. Beyond them its outermost bins hold the rest.
FINE = tl.constexpr(17)
HALF = tl.constexpr(127 << 17)
LAST = tl.constexpr(0x7FFFFFFF)
ABOVE_ALL = tl.constexpr((1 << 63) - 1)
