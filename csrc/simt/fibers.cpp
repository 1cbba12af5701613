// The threads of a block as fibers of the thread that launches: each runs until its next barrier, then the next one has
// its turn.

#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <new>
#include <vector>

#include "simt/block.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves the registers that a function must keep and the stack pointer in *from, and goes on where `to` was saved. The C
// library's swapcontext also saves the signal mask: a call of the system, thirty times slower.
extern "C" void gflv2_simt_switch(void** from, void* to);
asm(R"(
    .text
    .globl gflv2_simt_switch
    .hidden gflv2_simt_switch
    .type gflv2_simt_switch, @function
gflv2_simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size gflv2_simt_switch, . - gflv2_simt_switch
)");
#else
#include <ucontext.h>
#endif

namespace gflv2::simt {
namespace {

constexpr std::size_t stack_bytes = 256 * 1024;  // the address sanitizer's frames are large

// A stack with a page below it that nothing can touch.
class Stack {
public:
    Stack() {
        const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE));
        void* const memory = mmap(nullptr, stack_bytes + page, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(memory, page, PROT_NONE);
        low = static_cast<unsigned char*>(memory) + page;
    }
    unsigned char* low;  // kept until the process ends
};

void fiber_main();

// A flow of control that waits while another one runs.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;

    void prepare(unsigned char* low) {
        // As if fiber_main had called gflv2_simt_switch: six registers, then where to return to. A function finds the
        // stack pointer 8 below a multiple of 16.
        void** top = reinterpret_cast<void**>(low + stack_bytes) - 2;
        *top = reinterpret_cast<void*>(&fiber_main);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        stack_pointer = top;
    }
    void switch_to(Context& next) { gflv2_simt_switch(&stack_pointer, next.stack_pointer); }
#else
    ucontext_t context;

    void prepare(unsigned char* low) {
        getcontext(&context);
        context.uc_stack.ss_sp = low;
        context.uc_stack.ss_size = stack_bytes;
        context.uc_link = nullptr;
        makecontext(&context, &fiber_main, 0);
    }
    void switch_to(Context& next) { swapcontext(&context, &next.context); }
#endif
    // Of the address sanitizer, which keeps locals on a stack of its own.
    void* fake_stack = nullptr;
    const void* low = nullptr;
    std::size_t size = 0;
};

// Leaves `from` for `to`, and returns when another context leaves for `from`. `ending`: none will.
void leave(Context& from, Context& to, [[maybe_unused]] bool ending) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ending ? nullptr : &from.fake_stack, to.low, to.size);
#endif
    from.switch_to(to);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

struct Fiber {
    Context context;
    Stack stack;
};

// One block at a time in the whole process.
struct Machine {
    std::mutex mutex;
    std::vector<Fiber> fibers;
    std::vector<Stop> stops;
    SharedMemory shared;
    Context scheduler;
    const Launch* launched = nullptr;
    unsigned current = 0;
    bool downwards = false;

    void run_block(unsigned index);
};

Machine& machine() {
    static Machine* const instance = new Machine;  // never destroyed: a thread may still launch while the process ends
    return *instance;
}

void fiber_main() {
    Machine& m = machine();
    Fiber& self = m.fibers[m.current];
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &m.scheduler.low, &m.scheduler.size);
#endif
    m.launched->body(m.launched->context);
    m.stops[m.current] = {nullptr, 0};
    leave(self.context, m.scheduler, true);
    __builtin_unreachable();
}

void Machine::run_block(unsigned index) {
    const unsigned threads = launched->block;
    blockIdx = {index, 0, 0};
    shared.poison(launched->shared_bytes);
    for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = fibers[t];
#if defined(__SANITIZE_ADDRESS__)
        ASAN_UNPOISON_MEMORY_REGION(fiber.stack.low, stack_bytes);  // what the last block left there
#endif
        fiber.context.low = fiber.stack.low;
        fiber.context.size = stack_bytes;
        fiber.context.prepare(fiber.stack.low);
    }
    // To the next barrier, again and again.
    do {
        downwards = !downwards;
        for (unsigned i = 0; i < threads; ++i) {
            current = downwards ? threads - 1 - i : i;
            threadIdx = {current, 0, 0};
            leave(scheduler, fibers[current].context, false);
        }
        const std::string wrong = divergence(stops);
        if (!wrong.empty()) {
            shared.check();
            throw std::runtime_error(place_of(*launched, index) + wrong);
        }
    } while (stops[0].file != nullptr);
    const std::string wrong = shared.check();
    if (!wrong.empty()) throw std::runtime_error(place_of(*launched, index) + wrong);
}

}  // namespace

unsigned char* shared_memory() { return machine().shared.begin(); }

void wait(const char* file, int line) {
    Machine& m = machine();
    m.stops[m.current] = {file, line};
    leave(m.fibers[m.current].context, m.scheduler, false);
}

void run(const Launch& launched) {
    check_sizes(launched);
    Machine& m = machine();
    const std::lock_guard<std::mutex> lock(m.mutex);
    if (m.fibers.size() < launched.block) m.fibers.resize(launched.block);
    m.stops.assign(launched.block, {nullptr, 0});
    m.launched = &launched;
    blockDim = {launched.block, 1, 1};
    gridDim = {launched.grid, 1, 1};
    const bool from_last = m.downwards;  // changes with the number of turns before
    for (unsigned i = 0; i < launched.grid; ++i) m.run_block(from_last ? launched.grid - 1 - i : i);
}

}  // namespace gflv2::simt
