/* Text of PTX to instructions. What is not known ends the program with its file, line and text. */
#include "ptx.h"

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

/* Opcodes that have neither a form nor a type: their operands, and for mma.sync which elements. */
static const struct {
    const char *opcode;
    Kind kind;
    size_t operands;
    int number;
} KNOWN[] = {{"bra", BRANCH, 1, 0},
             {"bra.uni", BRANCH, 1, 0},
             {"ret", RETURN, 0, 0},
             {"exit", RETURN, 0, 0},
             {"bar.sync", BARRIER, 1, 0},
             {"bar.warp.sync", WARP_BARRIER, 1, 0},
             {"cp.async.cg.shared.global", COPY, 3, 0},
             {"cp.async.commit_group", COMMIT, 0, 0},
             {"cp.async.wait_group", WAIT, 1, 0},
             {"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", MMA, 14, BYTES},
             {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", MMA, 14, HALVES},
             {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", MMA, 14, BRAIN_HALVES}};

/* Words of a line: commas, braces and spaces stand between them. */
static std::vector<std::string> words_of(std::string text, const char *between = ",;{}()") {
    for (char &c : text)
        c = strchr(between, c) ? ' ' : c;
    std::istringstream stream(text);
    std::vector<std::string> words;
    for (std::string word; stream >> word;)
        words.push_back(word);
    return words;
}

/* Of a type, in bytes. 0: not the name of one. */
static int size_of(const std::string &type) {
    return type == "pred" ? 1 : type.size() > 1 && strchr("bsuf", type[0]) ? atoi(type.c_str() + 1) / 8 : 0;
}

static Word aligned(Word at, Word to) {
    return (at + to - 1) / to * to;
}

/* bt_bulk<Codes, 4, 4, false> of the mangled name. */
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
    std::map<size_t, std::string> branches; /* their labels */
    std::map<Word, int> constants;

    [[noreturn]] void unknown(const std::string &what) const {
        Kernel nowhere;
        nowhere.file = file;
        stop(kernel ? *kernel : nowhere, line, "the interpreter does not know " + what);
    }
    Array array(const std::string &text) const;
    void begin(const std::string &name);
    void end();
    void parameter(const std::string &text);
    void place(const Array &array);
    void declare(const std::string &text);
    int operand(const std::string &text);
    void address(Instruction &at, const std::string &text);
    bool memory(Instruction &at, std::vector<std::string> operands);
    bool special(Instruction &at, const std::vector<std::string> &operands);
    bool pack(Instruction &at, const std::vector<std::string> &operands, const std::string &text);
    void instruction(const std::string &text);
    void directive(const std::string &text);
    void read(const std::string &now);
};

} // namespace

/* .shared .align 16 .b8 name[1024];   or   .param .u64 name */
Array Parser::array(const std::string &text) const {
    const bool is_array = text.find('[') != std::string::npos, is_open = text.find("[]") != std::string::npos;
    Array array;
    for (const std::string &word : words_of(text, ",;[]"))
        if (word[0] == '.')
            array.bytes = size_of(word.substr(1)) ? (size_t)size_of(word.substr(1)) : array.bytes;
        else if (const size_t number = strtoull(word.c_str(), nullptr, 10))
            (array.name.empty() ? array.align : array.bytes) = number;
        else
            array.name = word;
    if (array.name.empty() || is_array != (text.find(".align") != std::string::npos))
        unknown("this declaration: " + text);
    array.align = is_array ? array.align : array.bytes;
    array.bytes = is_open ? 0 : array.bytes;
    return array;
}

void Parser::begin(const std::string &name) {
    if (kernels.count(name))
        unknown("two kernels of one name: " + name);
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
    for (const auto &[index, label] : branches) {
        if (!labels.count(label))
            unknown("the label " + label);
        kernel->code[index].number = labels[label];
    }
    kernel = nullptr;
}

void Parser::parameter(const std::string &text) {
    const Array whole = array(text);
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
        unknown("a static array after the dynamic one");
    kernel->shared.push_back({at, array.bytes});
    kernel->shared_end = at + array.bytes;
    kernel->shared_bytes = aligned(kernel->shared_bytes, array.align) + array.bytes;
}

/* Inside of a kernel. */
void Parser::declare(const std::string &text) {
    char type[16], name[64];
    int count = -1;
    if (text.starts_with(".shared"))
        return place(array(text));
    if (text.starts_with(".local")) {
        const Array local = array(text);
        const Word at = aligned(LOCAL_BASE + kernel->local_bytes, local.align);
        kernel->symbols[local.name] = at;
        kernel->local_bytes = at + local.bytes - LOCAL_BASE;
        return;
    }
    if (sscanf(text.c_str(), ".reg .%15s %63[^<;]<%d>", type, name, &count) < 2 || !size_of(type))
        unknown("this declaration: " + text);
    for (int i = 0; i < std::max(count, 1); i++)
        kernel->registers[name + (count < 0 ? "" : std::to_string(i))] = kernel->register_count++;
}

int Parser::operand(const std::string &text) {
    if (const auto found = kernel->registers.find(text); found != kernel->registers.end())
        return found->second;
    Word value;
    if (text.starts_with("0f") || text.starts_with("0d"))
        value = strtoull(text.c_str() + 2, nullptr, 16);
    else if (isdigit(text[0]) || text[0] == '-')
        value = text[0] == '-' ? 0 - strtoull(text.c_str() + 1, nullptr, 0) : strtoull(text.c_str(), nullptr, 0);
    else if (const auto symbol = kernel->symbols.find(text); symbol != kernel->symbols.end())
        value = symbol->second;
    else
        unknown("this operand: " + text);
    const auto [found, is_new] = constants.emplace(value, kernel->register_count);
    if (is_new)
        kernel->constants[kernel->register_count++] = value;
    return found->second;
}

/* [%rd1+16], [name+16], [%rd1] */
void Parser::address(Instruction &at, const std::string &text) {
    const auto parts = words_of(text, "[]+");
    at.base = operand(parts.at(0));
    at.offset = parts.size() > 1 ? strtoll(parts[1].c_str(), nullptr, 0) : 0;
}

/* ld.space.nc.v4.type and st; false: not of this kind. */
bool Parser::memory(Instruction &at, std::vector<std::string> operands) {
    static const std::map<std::string, Space> spaces = {
        {"global", GLOBAL}, {"shared", SHARED}, {"local", LOCAL}, {"param", PARAM}};
    const auto words = words_of(at.opcode, ".");
    size_t width = 1;
    if (words[0] != "ld" && words[0] != "st")
        return false;
    at.kind = words[0] == "ld" ? LOAD : STORE;
    for (size_t i = 1; i < words.size(); i++)
        if (spaces.count(words[i]))
            at.space = spaces.at(words[i]);
        else if (words[i] == "v2" || words[i] == "v4")
            width = (size_t)(words[i][1] - '0');
        else if (words[i] == "nc")
            at.uniform = true;
        else if (words[i] != "L1::no_allocate" && !size_of(words[i]))
            return false;
    at.bytes = size_of(words.back());
    at.is_signed = words.back()[0] == 's';
    if (!at.bytes || operands.size() != width + 1)
        return false;
    const auto where = at.kind == LOAD ? operands.end() - 1 : operands.begin();
    address(at, *where);
    operands.erase(where);
    for (const auto &text : operands)
        (at.kind == LOAD ? at.out : at.in).push_back(operand(text));
    return true;
}

/* The others that forms.cpp does not have. */
bool Parser::special(Instruction &at, const std::vector<std::string> &operands) {
    size_t written = 1;
    for (const auto &known : KNOWN)
        if (at.opcode == known.opcode) {
            at.kind = known.kind;
            at.number = known.number;
            if (operands.size() != known.operands)
                return false;
        }
    at.uniform = at.opcode == "bra.uni";
    if (at.kind == BRANCH)
        branches[kernel->code.size()] = operands[0];
    else if (at.kind == COPY) {
        const auto to = words_of(operands[0], "[]"); /* no offset; nor the form that writes zeros */
        at.in = {operand(to.at(0))};
        address(at, operands[1]);
        at.bytes = atoi(operands[2].c_str());
        return at.bytes == 16;
    } else if (at.kind == WAIT)
        at.number = atoi(operands[0].c_str());
    else if (at.kind == BARRIER || at.kind == WARP_BARRIER)
        return operands[0] == (at.kind == BARRIER ? "0" : "-1"); /* the one barrier, all lanes */
    else if (at.kind == MMA)
        written = 4;
    else if (at.opcode.starts_with("selp.") && operands.size() == 4)
        at.kind = SELECT;
    else if (at.kind != RETURN && at.kind != COMMIT)
        return false;
    for (size_t i = 0; i < operands.size() && (at.kind == MMA || at.kind == SELECT); i++)
        (i < written ? at.out : at.in).push_back(operand(operands[i]));
    return true;
}

/* mov.b64 %rd1, {%r1, %r2} and the other way round. */
bool Parser::pack(Instruction &at, const std::vector<std::string> &operands, const std::string &text) {
    const size_t braces = text.find('{');
    if (!at.opcode.starts_with("mov.b") || braces == std::string::npos)
        return false;
    at.kind = braces < text.find(',') ? UNPACK : PACK;
    at.bytes = size_of(at.opcode.substr(4)) / (int)(operands.size() - 1);
    const size_t written = at.kind == UNPACK ? operands.size() - 1 : 1;
    for (size_t i = 0; i < operands.size(); i++)
        (i < written ? at.out : at.in).push_back(operand(operands[i]));
    return true;
}

void Parser::instruction(const std::string &text) {
    auto words = words_of(text, ",;{}");
    Instruction at;
    at.line = line;
    if (words[0][0] == '@') {
        at.guard_not = words[0][1] == '!';
        at.guard = operand(words[0].substr(at.guard_not ? 2 : 1));
        words.erase(words.begin());
    }
    at.opcode = words[0];
    words.erase(words.begin());
    const Form *const form = find_form(at.opcode);
    if (form && words.size() == form->operands + 1 && text.find('{') == std::string::npos) {
        at.compute = form->compute;
        at.is_order =
            at.opcode.starts_with("setp.") && strchr("lg", at.opcode[5]) && at.opcode[at.opcode.rfind('.') + 1] != 'f';
        at.bytes = size_of(at.opcode.substr(at.opcode.rfind('.') + 1));
        for (size_t i = 0; i < words.size(); i++)
            (i < 1 ? at.out : at.in).push_back(operand(words[i]));
    } else if (!memory(at, words) && !pack(at, words, text) && !special(at, words))
        unknown("this instruction, see forms.cpp: " + text);
    for (const int to : at.out)
        if (kernel->constants.count(to))
            unknown("a constant as a destination: " + text);
    kernel->code.push_back(at);
}

/* Outside of kernels, and between the name of one and its code. */
void Parser::directive(const std::string &text) {
    const size_t entry = text.find(".entry");
    if (header && text.starts_with(".param"))
        parameter(text);
    else if (header && text.starts_with(".maxntid")) {
        kernel->max_threads = 1;
        for (const auto &count : words_of(text.substr(8)))
            kernel->max_threads *= (unsigned)atoi(count.c_str());
    } else if (header && text == "{")
        header = false;
    else if (text.starts_with(".extern .shared") || text.starts_with(".shared"))
        module_arrays.push_back(array(text.substr(text.find(".shared"))));
    else if (entry != std::string::npos)
        begin(words_of(text.substr(entry + 6)).at(0));
    else if (words_of(text, ".()").size() && !text.starts_with(".version") && !text.starts_with(".target") &&
             !text.starts_with(".address_size") && !text.starts_with(".minnctapersm"))
        unknown("this directive: " + text);
}

void parse(std::istream &text, const std::string &name) {
    Parser parser;
    parser.file = name;
    if (!text)
        parser.unknown("how to read it");
    for (std::string raw; std::getline(text, raw);) {
        parser.line++;
        const auto words = words_of(raw.substr(0, raw.find("//")), "\t\r");
        std::string now;
        for (const auto &word : words)
            now += (now.empty() ? "" : " ") + word;
        if (!now.empty() && !now.starts_with(".pragma"))
            parser.read(now);
    }
}

void Parser::read(const std::string &now) {
    if (!kernel || header)
        directive(now);
    else if (now == "}")
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

} // namespace ptx
