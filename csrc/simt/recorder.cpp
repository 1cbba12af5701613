#include "simt/recorder.hpp"

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

#include "simt/case.hpp"

namespace gflv2::simt {
namespace {

struct Recorder {
    std::string folder;
    std::vector<Span> noted;
    unsigned count = 0;
    Case current;
    std::vector<Span> regions;  // of the current call

    // Which of the spans an address lies in, the last one first: memory may have been given back and taken again.
    static std::size_t find(const std::vector<Span>& spans, std::uint64_t address) {
        for (std::size_t i = spans.size(); i-- > 0;) {
            const std::uint64_t begin = reinterpret_cast<std::uintptr_t>(spans[i].begin);
            if (address >= begin && address < begin + spans[i].size) return i;
        }
        return spans.size();
    }
};

Recorder recorder;

Bytes copy_of(Span span) {
    const unsigned char* const begin = static_cast<const unsigned char*>(span.begin);
    return Bytes(begin, begin + span.size);
}

}  // namespace

bool recording() { return !recorder.folder.empty(); }

void record_before(const char* operation, const std::vector<Span>& blocks) {
    Recorder& r = recorder;
    r.current = Case{};
    r.current.operation = operation;
    r.regions.clear();
    std::map<std::size_t, std::size_t> known;  // noted span → region
    for (std::size_t b = 0; b < blocks.size(); ++b) {
        r.current.blocks.push_back(copy_of(blocks[b]));
        for (std::size_t offset = 0; offset + 8 <= blocks[b].size; offset += 8) {
            std::uint64_t address;
            std::memcpy(&address, r.current.blocks[b].data() + offset, sizeof address);
            const std::size_t block = Recorder::find(blocks, address), span = Recorder::find(r.noted, address);
            if (block < blocks.size()) {
                r.current.pointers.push_back(
                    {b, offset, 1, block, address - reinterpret_cast<std::uintptr_t>(blocks[block].begin)});
            } else if (span < r.noted.size()) {
                const auto [at, is_new] = known.try_emplace(span, r.regions.size());
                if (is_new) {
                    r.regions.push_back(r.noted[span]);
                    r.current.regions.push_back({copy_of(r.noted[span]), {}});
                }
                r.current.pointers.push_back(
                    {b, offset, 0, at->second, address - reinterpret_cast<std::uintptr_t>(r.noted[span].begin)});
            }
        }
    }
}

void record_after() {
    Recorder& r = recorder;
    for (std::size_t i = 0; i < r.regions.size(); ++i) {
        Region& region = r.current.regions[i];
        if (std::memcmp(region.before.data(), r.regions[i].begin, r.regions[i].size) != 0)
            region.after = copy_of(r.regions[i]);
    }
    const std::string number = std::to_string(10000 + r.count++);
    write_case(r.current, r.folder + "/" + r.current.operation + "." + number + ".case");
    r.noted.clear();
}

void bind_recorder(pybind11::module_& m) {
    m.def("record", [](const std::string& folder) {
        recorder.folder = folder;
        recorder.noted.clear();
    });
    m.def("note", [](std::int64_t address, std::size_t bytes) {
        recorder.noted.push_back({reinterpret_cast<const void*>(address), bytes});
    });
}

}  // namespace gflv2::simt
