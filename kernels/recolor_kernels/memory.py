"""Indexing, loads and stores of the kernels.

A program works on up to BLOCK pixels of one image. Offsets that depend on the program id are computed in 64 bits, once
per program; offsets within the block in 32 bits, once per pixel. A thread loads or stores GROUP adjacent pixels of
uint8 NHWC: 8 or 4, as 32-bit words; or 1, byte by byte. `left` counts the pixels, or values, of a block that exist.
"""

import triton
import triton.language as tl

# ---- indexing ----


@triton.jit
def locate(block, pixels, blocks, BLOCK: tl.constexpr):
    """The image of a block (numbered across all images), its first pixel in the image, and its number of pixels.

    pixels, blocks: of one image.
    """
    image = (block // blocks).to(tl.int64)
    first = (block % blocks).to(tl.int64) * BLOCK
    return image, first, tl.minimum(pixels - first, BLOCK).to(tl.int32)


@triton.jit
def span(block, size, BLOCK: tl.constexpr):
    """The first value of a block of a flat tensor of `size` values, and its number of values."""
    first = tl.cast(block, tl.int64) * BLOCK
    return first, tl.minimum(size - first, BLOCK).to(tl.int32)


# ---- loads and stores ----


@triton.jit
def load(ptr, left, BLOCK: tl.constexpr):
    """BLOCK values from ptr on as float32; zero beyond the first `left`."""
    lane = tl.arange(0, BLOCK)
    return tl.load(ptr + lane, mask=lane < left, other=0).to(tl.float32)


@triton.jit
def store(ptr, values, left, BLOCK: tl.constexpr):
    """Store the first `left` of BLOCK values from ptr on, converted to its type."""
    lane = tl.arange(0, BLOCK)
    tl.store(ptr + lane, values.to(ptr.dtype.element_ty), mask=lane < left)


@triton.jit
def load_rgb(ptr, left, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Red, green and blue levels of BLOCK pixels from ptr on: int32 in 0..255."""
    if GROUP == 1:
        lane = tl.arange(0, BLOCK)
        red = tl.load(ptr + lane * 3, mask=lane < left, other=0).to(tl.int32)
        green = tl.load(ptr + lane * 3 + 1, mask=lane < left, other=0).to(tl.int32)
        blue = tl.load(ptr + lane * 3 + 2, mask=lane < left, other=0).to(tl.int32)
    else:
        words = ptr.to(tl.pointer_type(tl.int32))
        if GROUP == 4:
            group = tl.arange(0, BLOCK // 4)
            inside = group * 4 < left
            first = tl.load(words + group * 3, mask=inside, other=0)
            second = tl.load(words + group * 3 + 1, mask=inside, other=0)
            third = tl.load(words + group * 3 + 2, mask=inside, other=0)
        else:
            pair, inside = _word_pairs(left, BLOCK)
            word0, word1 = tl.split(tl.load(words + pair, mask=inside, other=0))
            word2, word3 = tl.split(tl.load(words + pair + 2, mask=inside, other=0))
            word4, word5 = tl.split(tl.load(words + pair + 4, mask=inside, other=0))
            first, second, third = tl.interleave(word0, word3), tl.interleave(word1, word4), tl.interleave(word2, word5)
        red0, green0, blue0, red1, green1, blue1, red2, green2, blue2, red3, green3, blue3 = _levels(
            first, second, third
        )
        red = interleave4(red0, red1, red2, red3)
        green = interleave4(green0, green1, green2, green3)
        blue = interleave4(blue0, blue1, blue2, blue3)
    return red, green, blue


@triton.jit
def load_rgb_flipped(
    ptr, first, pixels, width, mirrored, upside_down, GROUP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Levels as load_rgb, of pixels `first` and following of some rows of an image, which are mirrored, taken from the
    lowest row upward, or both, where these scalars are true.

    ptr: of the row that is taken first. pixels: of all these rows. GROUP: 4 or 1; a row holds whole groups.
    """
    lane = first + tl.arange(0, BLOCK // GROUP) * GROUP
    inside = lane < pixels
    column = lane % width
    rows_before = lane - column
    column = tl.where(mirrored, width - GROUP - column, column)
    place = ptr + (column + tl.where(upside_down, -rows_before, rows_before)) * 3
    if GROUP == 1:
        red = tl.load(place, mask=inside, other=0).to(tl.int32)
        green = tl.load(place + 1, mask=inside, other=0).to(tl.int32)
        blue = tl.load(place + 2, mask=inside, other=0).to(tl.int32)
    else:
        words = place.to(tl.pointer_type(tl.int32))
        one = tl.load(words, mask=inside, other=0)
        two = tl.load(words + 1, mask=inside, other=0)
        three = tl.load(words + 2, mask=inside, other=0)
        red0, green0, blue0, red1, green1, blue1, red2, green2, blue2, red3, green3, blue3 = _levels(one, two, three)
        red = _four(red0, red1, red2, red3, mirrored)
        green = _four(green0, green1, green2, green3, mirrored)
        blue = _four(blue0, blue1, blue2, blue3, mirrored)
    return red, green, blue


@triton.jit
def _levels(first, second, third):
    """The levels of four pixels, one after the other, from the three words that hold them."""
    return (
        first & 255, (first >> 8) & 255, (first >> 16) & 255, (first >> 24) & 255,
        second & 255, (second >> 8) & 255, (second >> 16) & 255, (second >> 24) & 255,
        third & 255, (third >> 8) & 255, (third >> 16) & 255, (third >> 24) & 255,
    )  # fmt: skip


@triton.jit
def _four(one, two, three, four, backward):
    """interleave4, of the last to the first if `backward`."""
    return interleave4(
        tl.where(backward, four, one),
        tl.where(backward, three, two),
        tl.where(backward, two, three),
        tl.where(backward, one, four),
    )


@triton.jit
def store_rgb(ptr, red, green, blue, left, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The counterpart of load_rgb. A level is the low 24 bits of an int32."""
    if GROUP == 1:
        lane = tl.arange(0, BLOCK)
        tl.store(ptr + lane * 3, red.to(tl.uint8), mask=lane < left)
        tl.store(ptr + lane * 3 + 1, green.to(tl.uint8), mask=lane < left)
        tl.store(ptr + lane * 3 + 2, blue.to(tl.uint8), mask=lane < left)
    else:
        words = ptr.to(tl.pointer_type(tl.int32))
        red0, red1, red2, red3 = deinterleave4(red, BLOCK)
        green0, green1, green2, green3 = deinterleave4(green, BLOCK)
        blue0, blue1, blue2, blue3 = deinterleave4(blue, BLOCK)
        first = _word(red0, green0, blue0, red1)
        second = _word(green1, blue1, red2, green2)
        third = _word(blue2, red3, green3, blue3)
        if GROUP == 4:
            group = tl.arange(0, BLOCK // 4)
            inside = group * 4 < left
            tl.store(words + group * 3, first, mask=inside)
            tl.store(words + group * 3 + 1, second, mask=inside)
            tl.store(words + group * 3 + 2, third, mask=inside)
        else:
            pair, inside = _word_pairs(left, BLOCK)
            word0, word3 = tl.split(tl.reshape(first, (BLOCK // 8, 2)))
            word1, word4 = tl.split(tl.reshape(second, (BLOCK // 8, 2)))
            word2, word5 = tl.split(tl.reshape(third, (BLOCK // 8, 2)))
            tl.store(words + pair, tl.join(word0, word1), mask=inside)
            tl.store(words + pair + 2, tl.join(word2, word3), mask=inside)
            tl.store(words + pair + 4, tl.join(word4, word5), mask=inside)


@triton.jit
def _word_pairs(left, BLOCK: tl.constexpr):
    """Offsets of the first two of the six words of each eight pixels, and whether those pixels exist."""
    group = tl.arange(0, BLOCK // 8)[:, None]
    return group * 6 + tl.arange(0, 2)[None, :], group * 8 < left


@triton.jit
def _word(one, two, three, four):
    return (one & 255) + (two << 8) + (three << 16) + (four << 24)


@triton.jit
def store_two(ptr, one, two, image, first, pixels, left, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Store two channels of an image's pixels from `first` on. pixels: of an image. LAST: channels last."""
    if LAST:
        store_pairs(ptr + (image * pixels + first) * 2, one, two, left, BLOCK)
    else:
        plane = ptr + image * pixels * 2 + first
        store(plane, one, left, BLOCK)
        store(plane + pixels, two, left, BLOCK)


@triton.jit
def store_three(
    ptr, one, two, three, image, first, pixels, left, LAST: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As store_two, of three channels."""
    if LAST:
        store_triples(ptr + (image * pixels + first) * 3, one, two, three, left, GROUP, BLOCK)
    else:
        plane = ptr + image * pixels * 3 + first
        store(plane, one, left, BLOCK)
        store(plane + pixels, two, left, BLOCK)
        store(plane + pixels + pixels, three, left, BLOCK)


@triton.jit
def store_pairs(ptr, one, two, left, BLOCK: tl.constexpr):
    """Store two channels, channels last."""
    lane = tl.arange(0, 2 * BLOCK)
    tl.store(ptr + lane, tl.interleave(one, two).to(ptr.dtype.element_ty), mask=lane < 2 * left)


@triton.jit
def store_triples(ptr, one, two, three, left, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Store three channels, channels last; in runs of four values if GROUP > 1."""
    lane = tl.arange(0, BLOCK)
    if GROUP > 1:
        one0, one1, one2, one3 = deinterleave4(one, BLOCK)
        two0, two1, two2, two3 = deinterleave4(two, BLOCK)
        three0, three1, three2, three3 = deinterleave4(three, BLOCK)
        place = ptr + (lane // 4) * 12 + lane % 4
        inside = lane < left
        tl.store(place, interleave4(one0, two0, three0, one1).to(ptr.dtype.element_ty), mask=inside)
        tl.store(place + 4, interleave4(two1, three1, one2, two2).to(ptr.dtype.element_ty), mask=inside)
        tl.store(place + 8, interleave4(three2, one3, two3, three3).to(ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(ptr + lane * 3, one.to(ptr.dtype.element_ty), mask=lane < left)
        tl.store(ptr + lane * 3 + 1, two.to(ptr.dtype.element_ty), mask=lane < left)
        tl.store(ptr + lane * 3 + 2, three.to(ptr.dtype.element_ty), mask=lane < left)


@triton.jit
def interleave4(one, two, three, four):
    """One vector of four: the first value of each, then the second of each, and so on."""
    return tl.interleave(tl.interleave(one, three), tl.interleave(two, four))


@triton.jit
def deinterleave4(values, BLOCK: tl.constexpr):
    """The first, second, third and fourth of every four values."""
    even, odd = tl.split(tl.reshape(values, (BLOCK // 4, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth
