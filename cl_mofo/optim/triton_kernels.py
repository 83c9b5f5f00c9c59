"""The kernels of `triton_step.py`, each launched once for all tensors of a step, or a few times.

`triton_layout.py` says what their tables mean. Counts come from integer atomics, and the order of
`candidates` decides nothing: the same moments give the same entries every time.
"""

import triton
import triton.language as tl

from cl_mofo.optim import triton_layout as layout
from cl_mofo.optim import triton_parts as parts


@triton.jit(do_not_specialize=["tensors"])
def count_step(table, options, coefficients, discard, tensors, BLOCK: tl.constexpr):
    """Add to the step counters and work out the coefficients, in float64."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = number < tensors
    address = tl.load(table + number * layout.COLUMNS + layout.STEP, mask=inside, other=0)
    at = address.to(tl.pointer_type(tl.float32))
    step = tl.load(at, mask=inside, other=1)
    step += tl.where(tl.load(discard), 0.0, 1.0)
    tl.store(at, step, mask=inside)

    row = options + number * layout.OPTIONS
    lr = tl.load(row + layout.LR, mask=inside, other=0)
    beta1 = tl.load(row + layout.BETA1, mask=inside, other=0)
    beta2 = tl.load(row + layout.BETA2, mask=inside, other=0)
    eps = tl.load(row + layout.EPS, mask=inside, other=0)
    weight_decay = tl.load(row + layout.WEIGHT_DECAY, mask=inside, other=0)

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

    row = coefficients + number * layout.COEFFICIENTS
    tl.store(row + layout.TAKE1, (1 - beta1).to(tl.float32), mask=inside)
    tl.store(row + layout.KEEP1, beta1.to(tl.float32), mask=inside)
    tl.store(row + layout.TAKE2, (1 - beta2).to(tl.float32), mask=inside)
    tl.store(row + layout.KEEP2, beta2.to(tl.float32), mask=inside)
    tl.store(row + layout.SHRINK, (1 - lr * weight_decay).to(tl.float32), mask=inside)
    tl.store(row + layout.STEP_SIZE, (lr / (1 - power1)).to(tl.float32), mask=inside)
    tl.store(row + layout.CORRECTION, tl.sqrt(1 - power2).to(tl.float32), mask=inside)
    tl.store(row + layout.EPSILON, eps.to(tl.float32), mask=inside)


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
    number, start, size = parts.place(table, tensor_of, BLOCK)
    if start + BLOCK <= size:
        counts = _update_block(
            table + number * layout.COLUMNS,
            coefficients + number * layout.COEFFICIENTS,
            state + number * layout.STATES,
            start,
            size,
            GRAD_TYPE,
            BLOCK,
            ALIGNED,
            True,
        )
    else:
        counts = _update_block(
            table + number * layout.COLUMNS,
            coefficients + number * layout.COEFFICIENTS,
            state + number * layout.STATES,
            start,
            size,
            GRAD_TYPE,
            BLOCK,
            ALIGNED,
            False,
        )
    parts.add(histogram + number * layout.BINS, counts)


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
    m_at = parts.pointers(tl.load(row + layout.FIRST_MOMENT), offsets, tl.float32, ALIGNED)
    v_at = parts.pointers(tl.load(row + layout.SECOND_MOMENT), offsets, tl.float32, ALIGNED)
    g_at = parts.pointers(tl.load(row + layout.GRAD), offsets, GRAD_TYPE, ALIGNED)
    take1 = tl.load(coefficient + layout.TAKE1)
    keep1 = tl.load(coefficient + layout.KEEP1)
    take2 = tl.load(coefficient + layout.TAKE2)
    keep2 = tl.load(coefficient + layout.KEEP2)
    m = parts.read(m_at, inside, WHOLE)
    v = parts.read(v_at, inside, WHOLE)
    g = parts.read(g_at, inside, WHOLE).to(tl.float32)
    apart = g - m
    m = tl.where(take1 < 0.5, m + take1 * apart, g - apart * keep1)
    v = v * keep2 + take2 * g * g
    if WHOLE:
        tl.store(m_at, m)
        tl.store(v_at, v)
    else:
        tl.store(m_at, m, mask=inside)
        tl.store(v_at, v, mask=inside)
    bins = (
        (parts.magnitude(m) - parts.fine_from(tl.load(state + layout.GUESS))) >> layout.FINE
    ) + 1
    return parts.tally(tl.minimum(tl.maximum(bins, 0), layout.BINS - 1), inside)


@triton.jit
def narrow(table, state, histogram, discard, FIRST: tl.constexpr):
    """Find the bin of a tensor's k-th rank, and empty the histogram for its next use."""
    if tl.load(discard):
        return
    number = tl.program_id(0)
    row = state + number * layout.STATES
    low = tl.load(row + layout.LOW)
    high = tl.load(row + layout.HIGH)
    wanted = tl.load(row + layout.WANTED)
    bins = tl.arange(0, layout.BINS).to(tl.int64)
    if FIRST:
        base = parts.fine_from(tl.load(row + layout.GUESS))
        wanted = tl.load(table + number * layout.COLUMNS + layout.CHOSEN)
        below = tl.where(bins == 0, 0, base + ((bins - 1) << layout.FINE)) << 32
        above = tl.where(
            bins == layout.BINS - 1, layout.ABOVE_ALL, (base + (bins << layout.FINE)) << 32
        )
    else:
        if low == high:
            return
        shift = parts.shift_of(low, high)
        below = low + (bins << shift)
        above = tl.minimum(below + (tl.full((), 1, tl.int64) << shift), high)

    at = histogram + number * layout.BINS + tl.arange(0, layout.BINS)
    counts = tl.load(at)
    tl.store(at, tl.zeros_like(counts))
    over = tl.sum(counts, 0) - tl.cumsum(counts, 0)  # entries in the bins above each
    boundary = (over < wanted) & (over + counts >= wanted)
    held = tl.sum(tl.where(boundary, counts, 0), 0).to(tl.int64)
    wanted -= tl.sum(tl.where(boundary, over, 0), 0)
    low = tl.sum(tl.where(boundary, below, 0), 0)
    high = tl.sum(tl.where(boundary, above, 0), 0)
    high = tl.where(held == wanted, low, high)
    tl.store(row + layout.LOW, low)
    tl.store(row + layout.HIGH, high)
    tl.store(row + layout.WANTED, wanted)
    tl.store(row + layout.GUESS, low >> 32)
    if FIRST:
        room = tl.load(table + number * layout.COLUMNS + layout.ROOM)
        tl.store(row + layout.TOP, high)
        tl.store(row + layout.HELD, tl.where(held <= room, held, -1))
        tl.store(row + layout.FILLED, held * 0)


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
    number, start, size = parts.place(table, tensor_of, BLOCK)
    row = table + number * layout.COLUMNS
    known = state + number * layout.STATES
    offsets = start + tl.arange(0, BLOCK)
    m_at = parts.pointers(tl.load(row + layout.FIRST_MOMENT), offsets, tl.float32, ALIGNED)
    if start + BLOCK <= size:
        m = tl.load(m_at)
    else:
        m = tl.load(m_at, mask=offsets < size, other=0)
    rank = tl.where(offsets < size, parts.rank_of(m, offsets), -1)
    top = tl.load(known + layout.TOP)
    parts.move(
        row, coefficients + number * layout.COEFFICIENTS, m, offsets, rank >= top, PARAM_TYPE
    )

    tied = (rank >= tl.load(known + layout.LOW)) & (rank < top)
    found = tl.sum(tied.to(tl.int32), 0)
    if (found > 0) & (tl.load(known + layout.HELD) >= 0):
        place = tl.atomic_add(known + layout.FILLED, found.to(tl.int64), sem="relaxed")
        place += tl.load(row + layout.FIRST_CANDIDATE) - 1
        tl.store(candidates + place + tl.cumsum(tied.to(tl.int32), 0), rank, mask=tied)


@triton.jit
def count_candidates(
    table,
    state,
    histogram,
    candidates,
    cut,
    discard,
    BLOCK: tl.constexpr,
):
    """Count the ranks within [LOW, HIGH), of a part of a tensor's candidates."""
    if tl.load(discard):
        return
    number, held, low, high, first, end = parts.own_part(table, state, cut, layout.HIGH, BLOCK)
    shift = parts.shift_of(low, high)
    counts = tl.zeros((layout.BINS,), tl.int32)
    while first < end:  # Triton's interpreter has no ranges of loaded numbers beside numpy 2.4
        offsets = first + tl.arange(0, BLOCK)
        rank = parts.candidate(
            table + number * layout.COLUMNS, candidates, held, offsets, offsets < end
        )
        inside = (rank >= low) & (rank < high)
        counts += parts.tally(((rank - low) >> shift).to(tl.int32), inside)
        first += BLOCK
    parts.add(histogram + number * layout.BINS, counts)


@triton.jit
def move_candidates(
    table,
    coefficients,
    state,
    candidates,
    cut,
    discard,
    PARAM_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move what is selected from the boundary bin, of a part of a tensor's candidates."""
    if tl.load(discard):
        return
    number, held, low, top, first, end = parts.own_part(table, state, cut, layout.TOP, BLOCK)
    row = table + number * layout.COLUMNS
    while first < end:
        offsets = first + tl.arange(0, BLOCK)
        rank = parts.candidate(row, candidates, held, offsets, offsets < end)
        chosen = (rank >= low) & (rank < top)
        index = ((rank & layout.LAST) ^ layout.LAST).to(tl.int32)
        m_at = parts.pointers(tl.load(row + layout.FIRST_MOMENT), index, tl.float32, False)
        m = tl.load(m_at, mask=chosen, other=0)
        parts.move(row, coefficients + number * layout.COEFFICIENTS, m, index, chosen, PARAM_TYPE)
        first += BLOCK
