// The threads of a block as threads of the operating system, for the thread sanitizer. Two teams share the blocks of a
// launch, with no order between them, so that a write of two blocks to one place shows as well.

#include <barrier>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "simt/block.hpp"

namespace gflv2::simt {
namespace {

struct Abandoned {};

class Team {
public:
    Team(const Launch& launched, unsigned first, unsigned step)
        : launched_(launched), block_(first), step_(step), stops_(launched.block),
          barrier_(launched.block, Arrived{this}) {
        shared_.poison(launched.shared_bytes);
    }

    // One thread: its part in every block of the team.
    void work(unsigned index) {
        current = this;
        threadIdx = {index, 0, 0};
        blockDim = {launched_.block, 1, 1};
        gridDim = {launched_.grid, 1, 1};
        while (block_ < launched_.grid && error_.empty()) {
            blockIdx = {block_, 0, 0};
            try {
                launched_.body(launched_.context);
                stop({nullptr, 0});
            } catch (const Abandoned&) { return; }
        }
    }

    void stop(Stop at) {
        stops_[threadIdx.x] = at;
        barrier_.arrive_and_wait();
        if (!error_.empty()) throw Abandoned{};
    }

    unsigned char* memory() const { return shared_.begin(); }
    const std::string& error() const { return error_; }

    static thread_local Team* current;

private:
    struct Arrived {
        Team* team;
        void operator()() noexcept { team->arrived(); }
    };

    // Called by one thread, when all have stopped.
    void arrived() {
        std::string wrong = divergence(stops_);
        const bool ended = stops_[0].file == nullptr;
        if (wrong.empty() && !ended) return;
        if (wrong.empty()) wrong = shared_.check();
        if (!wrong.empty()) {
            error_ = place_of(launched_, block_) + wrong;
            return;
        }
        block_ += step_;
        if (block_ < launched_.grid) shared_.poison(launched_.shared_bytes);
    }

    const Launch& launched_;
    unsigned block_, step_;
    std::vector<Stop> stops_;
    SharedMemory shared_;
    std::string error_;
    std::barrier<Arrived> barrier_;
};

thread_local Team* Team::current = nullptr;

}  // namespace

unsigned char* shared_memory() { return Team::current->memory(); }

void wait(const char* file, int line) { Team::current->stop({file, line}); }

void run(const Launch& launched) {
    check_sizes(launched);
    const unsigned teams = launched.grid > 1 && launched.block <= 256 ? 2 : 1;
    std::vector<std::unique_ptr<Team>> all;
    std::vector<std::thread> workers;
    for (unsigned team = 0; team < teams; ++team) all.push_back(std::make_unique<Team>(launched, team, teams));
    for (const auto& team : all)
        for (unsigned t = 0; t < launched.block; ++t) workers.emplace_back([&team = *team, t] { team.work(t); });
    for (std::thread& worker : workers) worker.join();
    for (const auto& team : all)
        if (!team->error().empty()) throw std::runtime_error(team->error());
}

}  // namespace gflv2::simt
