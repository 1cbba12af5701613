// The backward pass of `dgqp` for an operation that adds a gradient of its own to that of the logits, which are written
// once.
#pragma once

#include <cstdint>

#include "cpu/simd.hpp"
#include "gflv2/api/dgqp.hpp"

GFLV2_BEGIN

// `first` is the place in (B, A) of the tile's first point, `used` the number of its points. S: the type of the
// arithmetic.
template <class S> class AddedGradient {
public:
    // Is there anything to add for a point of the tile?
    virtual bool any(std::int64_t first, int used) const = 0;
    // to[b] = ∂L/∂t_b of one side, 0 for points that have nothing to add. P_b = exponentials[b]·inverse.
    virtual void write(std::int64_t first, int used, int side, int bins, const vector_t<S>* exponentials,
                       vector_t<S> inverse, vector_t<S>* to) const = 0;

protected:
    ~AddedGradient() = default;
};

// One of the two: S is the type of the arithmetic that a.dtype has.
void dgqp_backward(const DgqpArguments& a, const AddedGradient<float>& added, int threads);
void dgqp_backward(const DgqpArguments& a, const AddedGradient<double>& added, int threads);

GFLV2_END
