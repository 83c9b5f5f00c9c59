"""The kernels of `triton_step.py`, each launched once for all tensors of a step, or a few times.

An entry's rank is one integer: its magnitude's pattern above, its index, counted from the end,
below. No two are equal, and of equal magnitudes the smaller index ranks higher, so a selection is
the k entries of highest rank. Ranks are compared as integers, so nothing here flushes subnormals.

What is known of a tensor's k-th rank lies in its row of `state`: it is in [LOW, HIGH), where WANTED
entries are to be taken from the top, and all ranks from TOP on have been moved. LOW == HIGH says
that every rank from LOW on is selected. FILLED counts the entries in `candidates`; HELD says how
many there will be, or is -1 if there is no room for them: then the moment itself is read again.
GUESS is the magnitude at which the last step's selection ended.

Counts come from integer atomics, and the order of `candidates` decides nothing: the same moments
give the same entries every time.
"""

import triton
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
_FINE = tl.constexpr(17)
_HALF = tl.constexpr(127 << 17)
_LAST = tl.constexpr(0x7FFFFFFF)
_ABOVE_ALL = tl.constexpr((1 << 63) - 1)


@triton.jit
def count_step(table, options, coefficients, discard, tensors, BLOCK: tl.constexpr):
    """Add to the step counters and work out the coefficients, in float64."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = number < tensors
    address = tl.load(table + number * COLUMNS + STEP, mask=inside, other=0)
    at = address.to(tl.pointer_type(tl.float32))
    step = tl.load(at, mask=inside, other=1)
    step += tl.where(tl.load(discard), 0.0, 1.0)
    tl.store(at, step, mask=inside)

    row = options + number * OPTIONS
    lr = tl.load(row + LR, mask=inside, other=0)
    beta1 = tl.load(row + BETA1, mask=inside, other=0)
    beta2 = tl.load(row + BETA2, mask=inside, other=0)
    eps = tl.load(row + EPS, mask=inside, other=0)
    weight_decay = tl.load(row + WEIGHT_DECAY, mask=inside, other=0)

    # beta ** step, by squaring: a float32 counter has 24 bits.
    power1 = beta1 * 0 + 1
    power2 = power1
    square1 = beta1
    square2 = beta2
    left = step.to(tl.int32)
    for _ in range(25):
        power1 = tl.where((left & 1) == 1, power1 * square1, power1)
        power2 = tl.where((left & 1) == 1, power2 * square2, power2)
        square1 *= square1
        square2 *= square2
        left = left >> 1

    row = coefficients + number * COEFFICIENTS
    tl.store(row + TAKE1, (1 - beta1).to(tl.float32), mask=inside)
    tl.store(row + KEEP1, beta1.to(tl.float32), mask=inside)
    tl.store(row + TAKE2, (1 - beta2).to(tl.float32), mask=inside)
    tl.store(row + KEEP2, beta2.to(tl.float32), mask=inside)
    tl.store(row + SHRINK, (1 - lr * weight_decay).to(tl.float32), mask=inside)
    tl.store(row + STEP_SIZE, (lr / (1 - power1)).to(tl.float32), mask=inside)
    tl.store(row + CORRECTION, tl.sqrt(1 - power2).to(tl.float32), mask=inside)
    tl.store(row + EPSILON, eps.to(tl.float32), mask=inside)


@triton.jit
def update_moments(
    table,
    coefficients,
    state,
    histogram,
    tensor_of,
    discard,
    GRAD_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Update a block's moments, and count its first moment's magnitudes."""
    if tl.load(discard):
        return
    number, start, size = _place(table, tensor_of, BLOCK)
    if start + BLOCK <= size:
        counts = _update_block(
            table + number * COLUMNS,
            coefficients + number * COEFFICIENTS,
            state + number * STATES,
            start,
            size,
            GRAD_TYPE,
            BLOCK,
            ALIGNED,
            True,
        )
    else:
        counts = _update_block(
            table + number * COLUMNS,
            coefficients + number * COEFFICIENTS,
            state + number * STATES,
            start,
            size,
            GRAD_TYPE,
            BLOCK,
            ALIGNED,
            False,
        )
    _add(histogram + number * BINS, counts)


@triton.jit
def _update_block(
    row,
    coefficient,
    state,
    start,
    size,
    GRAD_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    offsets = start + tl.arange(0, BLOCK)
    inside = offsets < size
    m_at = _at(tl.load(row + FIRST_MOMENT), offsets, tl.float32, ALIGNED)
    v_at = _at(tl.load(row + SECOND_MOMENT), offsets, tl.float32, ALIGNED)
    g_at = _at(tl.load(row + GRAD), offsets, GRAD_TYPE, ALIGNED)
    take1 = tl.load(coefficient + TAKE1)
    keep1 = tl.load(coefficient + KEEP1)
    take2 = tl.load(coefficient + TAKE2)
    keep2 = tl.load(coefficient + KEEP2)
    m = _read(m_at, inside, WHOLE)
    v = _read(v_at, inside, WHOLE)
    g = _read(g_at, inside, WHOLE).to(tl.float32)
    apart = g - m
    m = tl.where(take1 < 0.5, m + take1 * apart, g - apart * keep1)
    v = v * keep2 + take2 * g * g
    if WHOLE:
        tl.store(m_at, m)
        tl.store(v_at, v)
    else:
        tl.store(m_at, m, mask=inside)
        tl.store(v_at, v, mask=inside)
    bins = ((_magnitude(m) - _base(tl.load(state + GUESS))) >> _FINE) + 1
    return _tally(tl.minimum(tl.maximum(bins, 0), BINS - 1), inside)


@triton.jit
def narrow(table, state, histogram, discard, FIRST: tl.constexpr):
    """Find the bin of a tensor's k-th rank, and empty the histogram for its next use."""
    if tl.load(discard):
        return
    number = tl.program_id(0)
    row = state + number * STATES
    low = tl.load(row + LOW)
    high = tl.load(row + HIGH)
    wanted = tl.load(row + WANTED)
    bins = tl.arange(0, BINS).to(tl.int64)
    if FIRST:
        base = _base(tl.load(row + GUESS))
        wanted = tl.load(table + number * COLUMNS + CHOSEN)
        below = tl.where(bins == 0, 0, base + ((bins - 1) << _FINE)) << 32
        above = tl.where(bins == BINS - 1, _ABOVE_ALL, (base + (bins << _FINE)) << 32)
    else:
        if low == high:
            return
        shift = _shift(low, high)
        below = low + (bins << shift)
        above = tl.minimum(below + (tl.full((), 1, tl.int64) << shift), high)

    at = histogram + number * BINS + tl.arange(0, BINS)
    counts = tl.load(at)
    tl.store(at, tl.zeros_like(counts))
    over = tl.sum(counts, 0) - tl.cumsum(counts, 0)  # entries in the bins above each
    boundary = (over < wanted) & (over + counts >= wanted)
    held = tl.sum(tl.where(boundary, counts, 0), 0).to(tl.int64)
    wanted -= tl.sum(tl.where(boundary, over, 0), 0)
    low = tl.sum(tl.where(boundary, below, 0), 0)
    high = tl.sum(tl.where(boundary, above, 0), 0)
    high = tl.where(held == wanted, low, high)
    tl.store(row + LOW, low)
    tl.store(row + HIGH, high)
    tl.store(row + WANTED, wanted)
    tl.store(row + GUESS, low >> 32)
    if FIRST:
        room = tl.load(table + number * COLUMNS + ROOM)
        tl.store(row + TOP, high)
        tl.store(row + HELD, tl.where(held <= room, held, -1))
        tl.store(row + FILLED, held * 0)


@triton.jit
def move_above(
    table,
    coefficients,
    state,
    candidates,
    tensor_of,
    discard,
    PARAM_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Move what ranks above the boundary bin, and list what lies in it."""
    if tl.load(discard):
        return
    number, start, size = _place(table, tensor_of, BLOCK)
    row = table + number * COLUMNS
    known = state + number * STATES
    offsets = start + tl.arange(0, BLOCK)
    m_at = _at(tl.load(row + FIRST_MOMENT), offsets, tl.float32, ALIGNED)
    if start + BLOCK <= size:
        m = tl.load(m_at)
    else:
        m = tl.load(m_at, mask=offsets < size, other=0)
    rank = tl.where(offsets < size, _rank(m, offsets), -1)
    top = tl.load(known + TOP)
    _move(row, coefficients + number * COEFFICIENTS, m, offsets, rank >= top, PARAM_TYPE)

    tied = (rank >= tl.load(known + LOW)) & (rank < top)
    found = tl.sum(tied.to(tl.int32), 0)
    if (found > 0) & (tl.load(known + HELD) >= 0):
        place = tl.atomic_add(known + FILLED, found.to(tl.int64), sem="relaxed")
        place += tl.load(row + FIRST_CANDIDATE) - 1
        tl.store(candidates + place + tl.cumsum(tied.to(tl.int32), 0), rank, mask=tied)


@triton.jit
def count_candidates(
    table,
    state,
    histogram,
    candidates,
    parts,
    discard,
    BLOCK: tl.constexpr,
):
    """Count the ranks within [LOW, HIGH), of a part of a tensor's candidates."""
    if tl.load(discard):
        return
    number, part, of = _part(parts)
    row = table + number * COLUMNS
    known = state + number * STATES
    low = tl.load(known + LOW)
    high = tl.load(known + HIGH)
    if low == high:
        return
    held = tl.load(known + HELD)
    start, end = _range(held, tl.load(row + SIZE), part, of, BLOCK)
    shift = _shift(low, high)
    counts = tl.zeros((BINS,), tl.int32)
    first = start
    while first < end:  # Triton's interpreter has no ranges of loaded numbers beside numpy 2.4
        offsets = first + tl.arange(0, BLOCK)
        rank = _candidate(row, candidates, held, offsets, offsets < end)
        inside = (rank >= low) & (rank < high)
        counts += _tally(((rank - low) >> shift).to(tl.int32), inside)
        first += BLOCK
    _add(histogram + number * BINS, counts)


@triton.jit
def move_candidates(
    table,
    coefficients,
    state,
    candidates,
    parts,
    discard,
    PARAM_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move what is selected from the boundary bin, of a part of a tensor's candidates."""
    if tl.load(discard):
        return
    number, part, of = _part(parts)
    row = table + number * COLUMNS
    known = state + number * STATES
    low = tl.load(known + LOW)
    top = tl.load(known + TOP)
    if low == top:
        return
    held = tl.load(known + HELD)
    start, end = _range(held, tl.load(row + SIZE), part, of, BLOCK)
    first = start
    while first < end:
        offsets = first + tl.arange(0, BLOCK)
        rank = _candidate(row, candidates, held, offsets, offsets < end)
        chosen = (rank >= low) & (rank < top)
        index = ((rank & _LAST) ^ _LAST).to(tl.int32)
        m_at = _at(tl.load(row + FIRST_MOMENT), index, tl.float32, False)
        m = tl.load(m_at, mask=chosen, other=0)
        _move(row, coefficients + number * COEFFICIENTS, m, index, chosen, PARAM_TYPE)
        first += BLOCK


@triton.jit
def _place(table, tensor_of, BLOCK: tl.constexpr):
    """Return this block's tensor, where it begins in it, and the tensor's size."""
    block = tl.program_id(0)
    number = tl.load(tensor_of + block)
    row = table + number * COLUMNS
    start = (block - tl.load(row + FIRST_BLOCK)).to(tl.int32) * BLOCK
    return number, start, tl.load(row + SIZE).to(tl.int32)


@triton.jit
def _part(parts):
    """Return this program's tensor, which part of it is its own, and of how many."""
    at = parts + tl.program_id(0) * 3
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit
def _range(held, size, part, of, BLOCK: tl.constexpr):
    """Return where a part of the candidates begins and ends."""
    total = tl.where(held >= 0, held, size).to(tl.int32)
    blocks = (total + BLOCK - 1) // BLOCK
    length = (blocks + of - 1) // of * BLOCK
    return part * length, tl.minimum(total, part * length + length)


@triton.jit
def _candidate(row, candidates, held, offsets, inside):
    """Return the candidates' ranks, from the list or from the moment itself; -1 outside."""
    if held >= 0:
        at = candidates + tl.load(row + FIRST_CANDIDATE) + offsets
        rank = tl.load(at, mask=inside, other=-1)
    else:
        m_at = _at(tl.load(row + FIRST_MOMENT), offsets, tl.float32, False)
        rank = tl.where(inside, _rank(tl.load(m_at, mask=inside, other=0), offsets), -1)
    return rank


@triton.jit
def _move(row, coefficient, m, offsets, chosen, PARAM_TYPE: tl.constexpr):
    """Move the chosen entries; of the others nothing is read or written."""
    p_at = _at(tl.load(row + PARAM), offsets, PARAM_TYPE, False)
    v_at = _at(tl.load(row + SECOND_MOMENT), offsets, tl.float32, False)
    p = tl.load(p_at, mask=chosen, other=0).to(tl.float32)
    v = tl.load(v_at, mask=chosen, other=1)
    # A GPU's root flushes subnormals, and where eps is 0 the move would be infinite.
    small = v < 2.0**-96
    root = tl.sqrt_rn(tl.where(small, v * 2.0**64, v)) * tl.where(small, 2.0**-32, 1.0)
    denominator = root / tl.load(coefficient + CORRECTION) + tl.load(coefficient + EPSILON)
    step = m * tl.load(coefficient + STEP_SIZE) / denominator
    p = p * tl.load(coefficient + SHRINK) - step
    tl.store(p_at, p.to(PARAM_TYPE), mask=chosen)


@triton.jit
def _at(address, offsets, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    at = address.to(tl.pointer_type(TYPE)) + offsets
    if ALIGNED:  # in bytes, of each run of consecutive addresses: loads may then take 16 at a time
        at = tl.multiple_of(at, [16])
    return at


@triton.jit
def _read(at, inside, WHOLE: tl.constexpr):
    if WHOLE:
        found = tl.load(at)
    else:
        found = tl.load(at, mask=inside, other=0)
    return found


@triton.jit
def _magnitude(values):
    return values.to(tl.int32, bitcast=True) & _LAST


@triton.jit
def _rank(values, index):
    return (_magnitude(values).to(tl.int64) << 32) | (index ^ _LAST).to(tl.int64)


@triton.jit
def _base(guess):
    """Return the magnitude at which the first histogram's fine bins begin."""
    return tl.maximum(tl.minimum(guess, _LAST - _HALF) - _HALF, 0).to(tl.int32)


@triton.jit
def _shift(low, high):
    """Return how many bits an interval's places lose so that `BINS` bins hold them."""
    widths = (high - low - 1) >> tl.arange(0, 64).to(tl.int64)
    return tl.sum((widths >= BINS).to(tl.int64), 0)


@triton.jit
def _tally(bins, inside):
    """Count the bins of what is inside."""
    outside = tl.sum(1 - inside.to(tl.int32), 0)
    counts = tl.histogram(tl.where(inside, bins, 0), BINS)
    counts -= tl.where(tl.arange(0, BINS) == 0, outside, 0)
    # Triton's interpreter counts in 64 bits, whatever the type says, and would add them as such.
    return counts.to(tl.int64).to(tl.int32)


@triton.jit
def _add(row, counts):
    tl.atomic_add(row + tl.arange(0, BINS), counts, mask=counts != 0, sem="relaxed")
