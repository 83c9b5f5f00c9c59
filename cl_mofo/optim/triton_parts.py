"""What several of the kernels in `triton_kernels.py` do."""

import triton
import triton.language as tl

from cl_mofo.optim import triton_layout as layout


@triton.jit
def place(table, tensor_of, BLOCK: tl.constexpr):
    """Return this block's tensor, where it begins in it, and the tensor's size."""
    block = tl.program_id(0)
    number = tl.load(tensor_of + block)
    row = table + number * layout.COLUMNS
    start = (block - tl.load(row + layout.FIRST_BLOCK)).to(tl.int32) * BLOCK
    return number, start, tl.load(row + layout.SIZE).to(tl.int32)


@triton.jit
def own_part(table, state, cut, ABOVE: tl.constexpr, BLOCK: tl.constexpr):
    """Return this program's tensor, how many candidates it holds, and what to look at of them.

    Returns:
        number, held, the ranks from LOW to a column of the state, and its own part of the
        candidates, from a place to a place: nothing if there is no rank to look for.
    """
    at = cut + tl.program_id(0) * 3
    number, part, of = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    known = state + number * layout.STATES
    held = tl.load(known + layout.HELD)
    low = tl.load(known + layout.LOW)
    high = tl.load(known + ABOVE)
    size = tl.load(table + number * layout.COLUMNS + layout.SIZE)
    total = tl.where(held >= 0, held, size).to(tl.int32)
    blocks = (total + BLOCK - 1) // BLOCK
    length = (blocks + of - 1) // of * BLOCK
    first = part * length
    end = tl.where(low == high, first, tl.minimum(total, first + length))
    return number, held, low, high, first, end


@triton.jit
def candidate(row, candidates, held, offsets, inside):
    """Return the candidates' ranks, from the list or from the moment itself; -1 outside."""
    if held >= 0:
        at = candidates + tl.load(row + layout.FIRST_CANDIDATE) + offsets
        rank = tl.load(at, mask=inside, other=-1)
    else:
        m_at = pointers(tl.load(row + layout.FIRST_MOMENT), offsets, tl.float32, False)
        rank = tl.where(inside, rank_of(tl.load(m_at, mask=inside, other=0), offsets), -1)
    return rank


@triton.jit
def move(row, coefficient, m, offsets, chosen, PARAM_TYPE: tl.constexpr):
    """Move the chosen entries; of the others nothing is read or written."""
    p_at = pointers(tl.load(row + layout.PARAM), offsets, PARAM_TYPE, False)
    v_at = pointers(tl.load(row + layout.SECOND_MOMENT), offsets, tl.float32, False)
    p = tl.load(p_at, mask=chosen, other=0).to(tl.float32)
    v = tl.load(v_at, mask=chosen, other=1)
    # A GPU's root flushes subnormals, and where eps is 0 the move would be infinite.
    small = v < 2.0**-96
    root = tl.sqrt_rn(tl.where(small, v * 2.0**64, v)) * tl.where(small, 2.0**-32, 1.0)
    denominator = root / tl.load(coefficient + layout.CORRECTION) + tl.load(
        coefficient + layout.EPSILON
    )
    step = m * tl.load(coefficient + layout.STEP_SIZE) / denominator
    p = p * tl.load(coefficient + layout.SHRINK) - step
    tl.store(p_at, p.to(PARAM_TYPE), mask=chosen)


@triton.jit
def pointers(address, offsets, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return pointers to entries of the tensor at an address."""
    at = address.to(tl.pointer_type(TYPE)) + offsets
    if ALIGNED:  # in bytes, of each run of consecutive addresses: loads may then take 16 at a time
        at = tl.multiple_of(at, [16])
    return at


@triton.jit
def read(at, inside, WHOLE: tl.constexpr):
    """Read all, or what is inside and zeros."""
    if WHOLE:
        found = tl.load(at)
    else:
        found = tl.load(at, mask=inside, other=0)
    return found


@triton.jit
def magnitude(values):
    """Return the patterns without their signs."""
    return values.to(tl.int32, bitcast=True) & layout.LAST


@triton.jit
def rank_of(values, index):
    """Return the ranks of entries, as `triton_layout.py` has them."""
    return (magnitude(values).to(tl.int64) << 32) | (index ^ layout.LAST).to(tl.int64)


@triton.jit
def fine_from(guess):
    """Return the magnitude at which the first histogram's fine bins begin."""
    return tl.maximum(tl.minimum(guess, layout.LAST - layout.HALF) - layout.HALF, 0).to(tl.int32)


@triton.jit
def shift_of(low, high):
    """Return how many bits an interval's places lose so that `BINS` bins hold them."""
    widths = (high - low - 1) >> tl.arange(0, 64).to(tl.int64)
    return tl.sum((widths >= layout.BINS).to(tl.int64), 0)


@triton.jit
def tally(bins, inside):
    """Count the bins of what is inside."""
    outside = tl.sum(1 - inside.to(tl.int32), 0)
    counts = tl.histogram(tl.where(inside, bins, 0), layout.BINS)
    counts -= tl.where(tl.arange(0, layout.BINS) == 0, outside, 0)
    # Triton's interpreter counts in 64 bits, whatever the type says, and would add them as such.
    return counts.to(tl.int64).to(tl.int32)


@triton.jit
def add(row, counts):
    """Add to a histogram."""
    tl.atomic_add(row + tl.arange(0, layout.BINS), counts, mask=counts != 0, sem="relaxed")
