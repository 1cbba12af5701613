// Chooses the instruction set once per process: the best that was compiled in and that this processor has, or the one
// that GFLV2_CPU_ISA or set_instruction_set() names.

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(_OPENMP)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/kernels.hpp"
#include "cpu/parallel.hpp"

#define GFLV2_DECLARE(name, Arguments) void name(const Arguments&, int threads);
namespace gflv2 {
#if defined(GFLV2_HAS_AVX2)
namespace avx2 {
GFLV2_CPU_KERNELS(GFLV2_DECLARE)
}
#endif
#if defined(GFLV2_HAS_AVX512)
namespace avx512 {
GFLV2_CPU_KERNELS(GFLV2_DECLARE)
}
#endif
namespace baseline {
GFLV2_CPU_KERNELS(GFLV2_DECLARE)
}

namespace {

struct InstructionSet {
    const char* name;
    bool (*present)();
#define GFLV2_FIELD(name, Arguments) void (*name)(const Arguments&, int);
    GFLV2_CPU_KERNELS(GFLV2_FIELD)
};

#if defined(__x86_64__)
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif
bool always() { return true; }

// Best first.
const InstructionSet instruction_sets_built[] = {
#if defined(GFLV2_HAS_AVX512)
#define GFLV2_ENTRY(name, Arguments) avx512::name,
    {"avx512", has_avx512, GFLV2_CPU_KERNELS(GFLV2_ENTRY)},
#undef GFLV2_ENTRY
#endif
#if defined(GFLV2_HAS_AVX2)
#define GFLV2_ENTRY(name, Arguments) avx2::name,
    {"avx2", has_avx2, GFLV2_CPU_KERNELS(GFLV2_ENTRY)},
#undef GFLV2_ENTRY
#endif
#define GFLV2_ENTRY(name, Arguments) baseline::name,
    {"baseline", always, GFLV2_CPU_KERNELS(GFLV2_ENTRY)},
#undef GFLV2_ENTRY
};

const InstructionSet* find(const char* name) {
    for (const InstructionSet& set : instruction_sets_built)
        if (set.present() && (name == nullptr || std::strcmp(name, set.name) == 0)) return &set;
    return nullptr;
}

const InstructionSet* choose_first() {
    const char* asked = std::getenv("GFLV2_CPU_ISA");
    const InstructionSet* set = asked && *asked ? find(asked) : nullptr;
    return set ? set : find(nullptr);
}

std::atomic<const InstructionSet*>& current() {
    static std::atomic<const InstructionSet*> chosen{choose_first()};
    return chosen;
}

}  // namespace

const char* instruction_set() { return current().load()->name; }

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet& set : instruction_sets_built)
        if (set.present()) names.push_back(set.name);
    return names;
}

bool set_instruction_set(const char* name) {
    const InstructionSet* set = find(name);
    if (set) current().store(set);
    return set != nullptr;
}

namespace cpu {

#define GFLV2_FORWARD(name, Arguments) \
    void name(const Arguments& arguments, int threads) { current().load()->name(arguments, threads); }
GFLV2_CPU_KERNELS(GFLV2_FORWARD)

int usable_threads(int wanted) {
#if defined(_OPENMP)
    static std::atomic<bool> threads_ran{false}, orphaned{false};
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
        if (threads_ran.load()) orphaned.store(true);
    });
    (void)registered;
    if (orphaned.load()) return 1;
    threads_ran.store(true);
#endif
    return wanted;
}

}  // namespace cpu
}  // namespace gflv2
