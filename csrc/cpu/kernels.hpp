// The list of CPU kernels. Each is compiled once per instruction set, into a namespace of that name; dispatch.cpp
// picks. A new operation is one more line of the list.
#pragma once

#include "gflv2/api.hpp"
#include "gflv2/macros.hpp"

#define GFLV2_CPU_KERNELS(KERNEL)                             \
    KERNEL(integral_forward, IntegralArguments)               \
    KERNEL(integral_backward, IntegralArguments)              \
    KERNEL(dgqp_forward, DgqpArguments)                       \
    KERNEL(dgqp_backward, DgqpArguments)                      \
    KERNEL(qfl_forward, QflArguments)                         \
    KERNEL(qfl_backward, QflArguments)                        \
    KERNEL(dfl_forward, DflArguments)                         \
    KERNEL(dfl_backward, DflArguments)                        \
    KERNEL(focal_forward, FocalArguments)                     \
    KERNEL(focal_backward, FocalArguments)                    \
    KERNEL(distribution_kl_forward, DistributionKlArguments)  \
    KERNEL(distribution_kl_backward, DistributionKlArguments) \
    KERNEL(giou_forward, GiouArguments)                       \
    KERNEL(giou_backward, GiouArguments)                      \
    KERNEL(gfl_targets, GflTargetsArguments)                  \
    KERNEL(box_loss_forward, BoxLossArguments)                \
    KERNEL(box_loss_backward, BoxLossBackwardArguments)       \
    KERNEL(decode, DecodeArguments)                           \
    KERNEL(atss, AtssArguments)                               \
    KERNEL(task_aligned, TaskAlignedArguments)                \
    KERNEL(dynamic_soft_label, DynamicSoftLabelArguments)

#if defined(GFLV2_ISA)
GFLV2_BEGIN
#define GFLV2_DECLARE(name, Arguments) void name(const Arguments&, int threads);
GFLV2_CPU_KERNELS(GFLV2_DECLARE)
#undef GFLV2_DECLARE
GFLV2_END
#endif
