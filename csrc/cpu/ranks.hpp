// take_rank of gflv2/dgqp.hpp for vectors. Included before it: a vector type has no namespace in which a template would
// find what is declared later.
#pragma once

#include "cpu/simd.hpp"

GFLV2_BEGIN

#if defined(__AVX512F__)
GFLV2_HD __mmask16 unranked(Floats) { return 0xffff; }
GFLV2_HD void take_rank(Floats e, Floats& top, Floats gradient, Floats& taken, __mmask16& free) {
    const __mmask16 here = _mm512_mask_cmp_ps_mask(free, (__m512)e, (__m512)top, _CMP_EQ_OQ);
    taken = (Floats)_mm512_mask_mov_ps((__m512)taken, here, (__m512)gradient);
    top = (Floats)_mm512_mask_mov_ps((__m512)top, here, _mm512_set1_ps(-1.0f));
    free = _kandn_mask16(here, free);
}
#else
GFLV2_HD Ints unranked(Floats) { return ~Ints{}; }
#endif

GFLV2_HD Longs unranked(Doubles) { return ~Longs{}; }
// M: integers of the size of V's elements.
template <class V, class M> GFLV2_HD void take_rank(V e, V& top, V gradient, V& taken, M& free) {
    const M here = (e == top) & free;
    taken = (V)((M)taken | ((M)gradient & here));  // each bin takes one rank at most
    top = (V)(here | ((M)top & ~here));            // all bits set: a NaN, equal to nothing
    free &= ~here;
}

GFLV2_END
