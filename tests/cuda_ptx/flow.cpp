/* Where the paths of a branch meet again: its immediate post-dominator, by the algorithm of Cooper, Harvey and Kennedy
 * on the reversed graph of instructions. The end of the code is one node more. */
#include "ptx.h"

namespace ptx {

static std::vector<std::vector<int>> successors(const std::vector<Instruction> &code) {
    const int end = (int)code.size();
    std::vector<std::vector<int>> after((size_t)end + 1);
    for (int i = 0; i < end; i++) {
        const bool leaves = code[i].kind == RETURN, jumps = leaves || code[i].kind == BRANCH;
        if (jumps)
            after[i].push_back(leaves ? end : code[i].target);
        if (!jumps || code[i].guard >= 0)
            after[i].push_back(i + 1);
    }
    return after;
}

/* The nodes from which `start` is reached, each after those that it was found from. */
static std::vector<int> postorder(const std::vector<std::vector<int>> &before, int start) {
    std::vector<int> order;
    std::vector<bool> seen(before.size());
    std::vector<std::pair<int, size_t>> path = {{start, 0}};
    seen[start] = true;
    while (!path.empty()) {
        auto &[node, next] = path.back();
        if (next == before[node].size()) {
            order.push_back(node);
            path.pop_back();
        } else if (const int to = before[node][next++]; !seen[to]) {
            seen[to] = true;
            path.push_back({to, 0});
        }
    }
    return order;
}

void find_joins(Kernel &kernel) {
    const int end = (int)kernel.code.size();
    const auto after = successors(kernel.code);
    std::vector<std::vector<int>> before(after.size());
    for (int i = 0; i < end; i++)
        for (const int to : after[i])
            before[to].push_back(i);
    const auto order = postorder(before, end);
    std::vector<int> number(after.size(), -1), join(after.size(), -1);
    for (size_t i = 0; i < order.size(); i++)
        number[order[i]] = (int)i;
    join[end] = end;
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = order.size() - 1; i-- > 0;) {
            int meet = -1;
            for (int other : after[order[i]]) {
                if (join[other] < 0)
                    continue;
                while (meet >= 0 && meet != other)
                    (number[meet] < number[other] ? meet : other) = join[number[meet] < number[other] ? meet : other];
                meet = other;
            }
            changed = changed || join[order[i]] != meet;
            join[order[i]] = meet;
        }
    }
    for (int i = 0; i < end; i++)
        kernel.code[i].join = join[i] < 0 ? end : join[i];
}

} // namespace ptx
