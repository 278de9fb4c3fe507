/* Text of PTX to instructions. What is not known ends the program with its file, line and text. */
#include "ptx.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cxxabi.h>
#include <sstream>

namespace ptx {

std::map<std::string, Kernel> kernels;

void stop(const Kernel &kernel, int line, const std::string &why) {
    fflush(stdout);
    fprintf(stderr, "%s:%d: %s: %s\n", kernel.file.c_str(), line, kernel.name.c_str(), why.c_str());
    exit(2);
}

static bool starts(const std::string &text, const char *with) {
    return text.compare(0, strlen(with), with) == 0;
}

static std::string trimmed(std::string text) {
    text = text.substr(0, text.find("//"));
    const size_t first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r;");
    return first == std::string::npos || last == std::string::npos ? "" : text.substr(first, last + 1 - first);
}

/* The parts between separators that are outside of brackets, without spaces. */
static std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts(1);
    int depth = 0;
    for (const char c : text) {
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (c == separator && depth == 0)
            parts.emplace_back();
        else if (!strchr(" \t", c))
            parts.back() += c;
    }
    if (parts.back().empty())
        parts.pop_back();
    return parts;
}

static std::string inside(const std::string &brackets) {
    return brackets.substr(1, brackets.size() - 2);
}

/* 0: not the name of a type. */
static int bytes_of(const std::string &type) {
    return type == "pred" ? 1 : type.size() > 1 && strchr("bsuf", type[0]) ? atoi(type.c_str() + 1) / 8 : 0;
}

static Word aligned(Word at, Word to) {
    return (at + to - 1) / to * to;
}

/* bt_bulk<(anonymous namespace)::Codes, 4, 4, false> of the mangled name. */
static std::string readable(const std::string &name) {
    char *const text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, nullptr);
    std::string result = text ? text : name;
    free(text);
    for (const std::string word : {"void ", "(anonymous namespace)::"})
        for (size_t at; (at = result.find(word)) != std::string::npos;)
            result.erase(at, word.size());
    return result.substr(0, result.find('('));
}

namespace {

struct Array {
    std::string name;
    size_t align = 1, bytes = 0;
};

struct Parser {
    std::string file;
    int line = 0;
    Kernel *kernel = nullptr;
    bool header = false;
    std::vector<Array> module_arrays; /* shared, of the whole file; no bytes: dynamic */
    std::map<std::string, int> labels;
    std::vector<std::pair<size_t, std::string>> branches;
    std::map<Word, int> constants;

    [[noreturn]] void stop_at(const std::string &why) const {
        Kernel nowhere;
        nowhere.file = file;
        stop(kernel ? *kernel : nowhere, line, why);
    }
    void read(std::istream &text);
    void outside(const std::string &text);
    void begin(const std::string &name);
    void end();
    void parameter(const std::string &text);
    Array array(const std::string &text) const;
    void place(const Array &array);
    void declare(const std::string &text);
    int operand(const std::string &text);
    std::vector<int> operands(const std::string &text);
    void address(Instruction &at, const std::string &text);
    void instruction(std::string text);
    bool control(Instruction &at, const std::vector<std::string> &arguments);
    bool memory(Instruction &at, const std::vector<std::string> &words, const std::vector<std::string> &arguments);
    bool copies(Instruction &at, const std::vector<std::string> &arguments);
    bool moves(Instruction &at, const std::vector<std::string> &words, const std::vector<std::string> &arguments);
};

} // namespace

/* .align 16 .b8 name[1024] */
Array Parser::array(const std::string &text) const {
    char name[1024];
    Array array;
    const int read = sscanf(text.c_str(), " .align %zu .b8 %1023[^[][%zu]", &array.align, name, &array.bytes);
    if (read != 3 && !(read == 2 && text.find("[]") != std::string::npos))
        stop_at("this declaration is not known: " + text);
    array.name = name;
    return array;
}

void Parser::outside(const std::string &text) {
    const size_t entry = text.find(".entry");
    if (starts(text, ".extern .shared"))
        module_arrays.push_back(array(text.substr(15)));
    else if (starts(text, ".shared"))
        module_arrays.push_back(array(text.substr(7)));
    else if (entry != std::string::npos)
        begin(trimmed(text.substr(entry + 6, text.find('(') - entry - 6)));
    else if (!starts(text, ".version") && !starts(text, ".target") && !starts(text, ".address_size"))
        stop_at("this directive is not known: " + text);
}

void Parser::begin(const std::string &name) {
    if (kernels.count(name))
        stop_at("two kernels have the name " + name);
    kernel = &kernels[name];
    kernel->file = file.substr(file.rfind('/') + 1);
    kernel->name = readable(name);
    header = true;
    labels.clear(), branches.clear(), constants.clear();
    for (const char *special : {"%tid", "%ntid", "%ctaid", "%nctaid"})
        for (const char *axis : {".x", ".y", ".z"})
            kernel->registers[std::string(special) + axis] = kernel->register_count++;
}

void Parser::end() {
    for (const auto &[at, label] : branches) {
        if (!labels.count(label))
            stop_at("no such label: " + label);
        kernel->code[at].target = labels[label];
    }
    find_joins(*kernel);
    kernel = nullptr;
}

/* .param .align 8 .b8 name[168]   or   .param .u64 name */
void Parser::parameter(const std::string &text) {
    Array whole;
    if (text.find('[') != std::string::npos)
        whole = array(text.substr(6));
    else {
        std::istringstream words(text.substr(6));
        std::string type;
        words >> type >> whole.name;
        whole.bytes = whole.align = (size_t)bytes_of(type.substr(1));
    }
    kernel->param_bytes = aligned(kernel->param_bytes, whole.align);
    kernel->symbols[whole.name] = PARAM_BASE + kernel->param_bytes;
    kernel->parameters.push_back({kernel->param_bytes, whole.bytes});
    kernel->param_bytes += whole.bytes;
}

/* At an odd multiple of its alignment, with a gap before it that belongs to nobody. */
void Parser::place(const Array &array) {
    const Word at = aligned(kernel->shared_end + 64, 2 * array.align) + array.align;
    kernel->symbols[array.name] = at;
    if (array.bytes == 0) {
        kernel->dynamic_at = at;
        return;
    }
    if (kernel->dynamic_at)
        stop_at("a static array after the dynamic one");
    kernel->shared.push_back({at, array.bytes});
    kernel->shared_end = at + array.bytes;
    kernel->shared_bytes = aligned(kernel->shared_bytes, array.align) + array.bytes;
}

void Parser::declare(const std::string &text) {
    if (starts(text, ".shared"))
        return place(array(text.substr(7)));
    if (starts(text, ".local")) {
        const Array local = array(text.substr(6));
        const Word at = aligned(LOCAL_BASE + kernel->local_bytes, local.align);
        kernel->symbols[local.name] = at;
        kernel->local_bytes = at + local.bytes - LOCAL_BASE;
        return;
    }
    char type[16], name[64];
    int count = -1;
    if (sscanf(text.c_str(), ".reg .%15s %63[^<]<%d>", type, name, &count) < 2 || !bytes_of(type))
        stop_at("this declaration is not known: " + text);
    for (int i = 0; i < (count < 0 ? 1 : count); i++)
        kernel->registers[name + (count < 0 ? "" : std::to_string(i))] = kernel->register_count++;
}

int Parser::operand(const std::string &text) {
    if (const auto found = kernel->registers.find(text); found != kernel->registers.end())
        return found->second;
    Word value;
    if (starts(text, "0f") || starts(text, "0d"))
        value = strtoull(text.c_str() + 2, nullptr, 16);
    else if (isdigit(text[0]) || text[0] == '-')
        value = text[0] == '-' ? 0 - strtoull(text.c_str() + 1, nullptr, 0) : strtoull(text.c_str(), nullptr, 0);
    else if (const auto symbol = kernel->symbols.find(text); symbol != kernel->symbols.end())
        value = symbol->second;
    else
        stop_at("this operand is not known: " + text);
    const auto [found, is_new] = constants.emplace(value, kernel->register_count);
    if (is_new)
        kernel->constants[kernel->register_count++] = value;
    return found->second;
}

/* {%r1, %r2} or %r1 */
std::vector<int> Parser::operands(const std::string &text) {
    std::vector<int> all;
    for (const auto &part : text[0] == '{' ? split(inside(text), ',') : std::vector<std::string>{text})
        all.push_back(operand(part));
    return all;
}

/* [%rd1+16], [name+16], [%rd1] */
void Parser::address(Instruction &at, const std::string &text) {
    const auto parts = split(inside(text), '+');
    at.offset = parts.size() > 1 ? strtoll(parts[1].c_str(), nullptr, 0) : 0;
    at.base = operand(parts[0]);
}

bool Parser::control(Instruction &at, const std::vector<std::string> &arguments) {
    if (at.opcode == "bra" || at.opcode == "bra.uni") {
        at.kind = BRANCH;
        at.uniform = at.opcode == "bra.uni";
        branches.emplace_back(kernel->code.size(), arguments.at(0));
    } else if (at.opcode == "bar.sync" && arguments == std::vector<std::string>{"0"})
        at.kind = BARRIER;
    else if (at.opcode == "ret" || at.opcode == "exit")
        at.kind = RETURN;
    else
        return false;
    return true;
}

bool Parser::memory(Instruction &at, const std::vector<std::string> &words, const std::vector<std::string> &arguments) {
    static const std::map<std::string, Space> spaces = {
        {"global", GLOBAL}, {"shared", SHARED}, {"local", LOCAL}, {"param", PARAM}};
    if ((words[0] != "ld" && words[0] != "st") || arguments.size() != 2)
        return false;
    const bool load = words[0] == "ld";
    size_t width = 1;
    for (size_t i = 1; i < words.size(); i++)
        if (spaces.count(words[i]))
            at.space = spaces.at(words[i]);
        else if (words[i] == "v2" || words[i] == "v4")
            width = (size_t)(words[i][1] - '0');
        else if (words[i] == "nc")
            at.uniform = true;
        else if (words[i] != "L1::no_allocate" && !bytes_of(words[i]))
            return false;
    at.kind = load ? LOAD : STORE;
    at.bytes = bytes_of(words.back());
    at.is_signed = words.back()[0] == 's';
    (load ? at.out : at.in) = operands(arguments[load ? 0 : 1]);
    address(at, arguments[load ? 1 : 0]);
    return at.bytes && (load ? at.out : at.in).size() == width;
}

/* cp.async of whole pieces: no form that writes zeros, no offset to the address in shared memory. */
bool Parser::copies(Instruction &at, const std::vector<std::string> &arguments) {
    at.number = arguments.empty() ? 0 : atoi(arguments.back().c_str());
    if (at.opcode == "cp.async.cg.shared.global" || at.opcode == "cp.async.ca.shared.global") {
        at.kind = COPY;
        at.bytes = at.number;
        if (arguments.size() != 3 || (at.opcode == "cp.async.cg.shared.global" && at.bytes != 16))
            return false;
        at.in = {operand(inside(arguments[0]))};
        address(at, arguments[1]);
    } else if (at.opcode == "cp.async.commit_group")
        at.kind = COMMIT;
    else if (at.opcode == "cp.async.wait_group" || at.opcode == "cp.async.wait_all")
        at.kind = WAIT;
    else
        return false;
    return true;
}

bool Parser::moves(Instruction &at, const std::vector<std::string> &words, const std::vector<std::string> &arguments) {
    static const std::string of_bytes = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32";
    static const std::string of_halves = "mma.sync.aligned.m16n8k16.row.col.f32.";
    const bool pack = words[0] == "mov" && arguments.size() == 2 && arguments[1][0] == '{';
    const bool unpack = words[0] == "mov" && arguments.size() == 2 && arguments[0][0] == '{';
    if (words[0] == "selp" && words.size() == 2 && arguments.size() == 4)
        at.kind = SELECT;
    else if (pack || unpack)
        at.kind = pack ? PACK : UNPACK;
    else if (at.opcode == of_bytes || at.opcode == of_halves + "f16.f16.f32" ||
             at.opcode == of_halves + "bf16.bf16.f32") {
        at.kind = MMA;
        at.number = at.opcode == of_bytes ? 4 : 2;
    } else
        return false;
    at.out = operands(arguments[0]);
    for (size_t i = 1; i < arguments.size(); i++)
        for (const int source : operands(arguments[i]))
            at.in.push_back(source);
    at.bytes = bytes_of(words.back()) / (int)std::max(at.in.size(), at.out.size()); /* of a part of a pack */
    return at.kind != MMA || (at.out.size() == 4 && at.in.size() == 10);
}

void Parser::instruction(std::string text) {
    Instruction at;
    at.line = line;
    const std::string whole = text;
    if (text[0] == '@') {
        at.guard_not = text[1] == '!';
        const size_t space = text.find_first_of(" \t"), name = at.guard_not ? 2 : 1;
        at.guard = operand(text.substr(name, space - name));
        text = trimmed(text.substr(space));
    }
    const size_t space = std::min(text.find_first_of(" \t"), text.size());
    at.opcode = text.substr(0, space);
    const auto words = split(at.opcode, '.'), arguments = split(text.substr(space), ',');
    if (const Form *const form = find_form(at.opcode);
        form && arguments.size() == form->operands + 1 && text.find('{') == std::string::npos) {
        at.compute = form->compute;
        at.out = {operand(arguments[0])};
        for (size_t i = 1; i < arguments.size(); i++)
            at.in.push_back(operand(arguments[i]));
    } else if (!control(at, arguments) && !memory(at, words, arguments) && !copies(at, arguments) &&
               !moves(at, words, arguments))
        stop_at("the interpreter does not know this instruction, see forms.cpp: " + whole);
    for (const int to : at.out)
        if (kernel->constants.count(to))
            stop_at("a constant as a destination: " + whole);
    kernel->code.push_back(at);
}

void Parser::read(std::istream &text) {
    for (std::string raw; std::getline(text, raw);) {
        line++;
        const std::string now = trimmed(raw);
        if (now.empty() || starts(now, ".pragma"))
            continue;
        if (!kernel)
            outside(now);
        else if (header) {
            if (starts(now, ".param"))
                parameter(now.substr(0, now.find(',')));
            else if (starts(now, ".maxntid")) {
                unsigned x = 1, y = 1, z = 1;
                sscanf(now.c_str(), ".maxntid %u, %u, %u", &x, &y, &z);
                kernel->max_threads = x * y * z;
            } else if (now == "{")
                header = false;
            else if (now != ")" && now != "(" && !starts(now, ".minnctapersm"))
                stop_at("this directive is not known: " + now);
        } else if (now == "}")
            end();
        else if (now[0] == '.')
            declare(now);
        else if (now.back() == ':')
            labels[now.substr(0, now.size() - 1)] = (int)kernel->code.size();
        else {
            for (const auto &array : module_arrays)
                if (!kernel->symbols.count(array.name) && now.find(array.name) != std::string::npos)
                    place(array);
            instruction(now);
        }
    }
}

void parse(std::istream &text, const std::string &name) {
    Parser parser;
    parser.file = name;
    if (!text)
        parser.stop_at("cannot be read");
    parser.read(text);
}

} // namespace ptx
