#include "simt/case.hpp"

#include <cstring>
#include <fstream>
#include <stdexcept>

namespace gflv2::simt {
namespace {

const char magic[] = "gflv2 recorded call 1\n";

// One list of the fields for both directions.
class File {
public:
    File(const std::string& path, bool writing)
        : writing_(writing), stream_(path, std::ios::binary | (writing ? std::ios::out : std::ios::in)) {
        if (!stream_) throw std::runtime_error(path + " cannot be opened");
        stream_.exceptions(std::ios::failbit | std::ios::badbit);
    }

    void number(std::uint64_t& value) { raw(&value, sizeof value); }

    template <class Sequence> void bytes(Sequence& sequence) {
        std::uint64_t size = sequence.size();
        number(size);
        sequence.resize(size);
        raw(sequence.data(), size);
    }

    template <class T, class F> void each(std::vector<T>& items, const F& field) {
        std::uint64_t count = items.size();
        number(count);
        items.resize(count);
        for (T& item : items) field(item);
    }

private:
    void raw(void* data, std::uint64_t size) {
        if (writing_) stream_.write(static_cast<const char*>(data), std::streamsize(size));
        else stream_.read(static_cast<char*>(data), std::streamsize(size));
    }

    bool writing_;
    std::fstream stream_;
};

void exchange(File& file, Case& c) {
    std::string head = magic;
    file.bytes(head);
    if (head != magic) throw std::runtime_error("not a recorded call");
    file.bytes(c.operation);
    file.each(c.blocks, [&](Bytes& block) { file.bytes(block); });
    file.each(c.regions, [&](Region& region) {
        file.bytes(region.before);
        file.bytes(region.after);
    });
    file.each(c.pointers, [&](Pointer& p) {
        for (std::uint64_t* field : {&p.block, &p.offset, &p.in_block, &p.target, &p.target_offset})
            file.number(*field);
    });
}

}  // namespace

void write_case(const Case& recorded, const std::string& path) {
    Case copy = recorded;
    File file(path, true);
    exchange(file, copy);
}

Case read_case(const std::string& path) {
    Case found;
    File file(path, false);
    exchange(file, found);
    return found;
}

}  // namespace gflv2::simt
