/* PyInit__C: the part of the extension that is not a torch op. CPython's limited API, so one binary serves 3.10 and
 * later. */
#include <Python.h>

#include "cpu_features.h"
#include "kernel_table.h"

static const char *const type_names[] = {"float32", "float16", "bfloat16", "int8"};
static const char *const device_names[] = {"cpu", "cuda"};

/* Appends and gives up the reference; 0 on success. */
static int append(PyObject *list, PyObject *item) {
    const int failed = item == NULL || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static PyObject *cpu_features(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const uint32_t features = bt_cpu_features();
    PyObject *list = PyList_New(0);
    for (int bit = 0; list && bt_cpu_feature_name(bit); bit++)
        if ((features >> bit & 1u) && append(list, PyUnicode_FromString(bt_cpu_feature_name(bit))) < 0)
            Py_CLEAR(list);
    return list;
}

static PyObject *type_list(unsigned dtypes) {
    PyObject *list = PyList_New(0);
    for (int type = 0; list && type < (int)(sizeof type_names / sizeof *type_names); type++)
        if ((dtypes & BT_SET(type)) && append(list, PyUnicode_FromString(type_names[type])) < 0)
            Py_CLEAR(list);
    return list;
}

static PyObject *kernels(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < bt_kernel_count; i++) {
        const bt_kernel *k = &bt_kernels[i];
        PyObject *row = Py_BuildValue("{s:s, s:s, s:N, s:s, s:O}", "op", bt_op_name(k->op), "device",
                                      device_names[k->device], "dtypes", type_list(k->dtypes), "variant", k->variant,
                                      "usable", bt_kernel_usable(k) ? Py_True : Py_False);
        if (append(list, row) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* The op of that name, or BT_OP_COUNT with an exception set. */
static bt_op parse_op(const char *name) {
    const bt_op op = bt_op_find(name);
    if (op == BT_OP_COUNT)
        PyErr_Format(PyExc_ValueError, "no op is called '%s'; _C.kernels() lists them", name);
    return op;
}

static int parse_name(const char *name, const char *const *names, int count, const char *what) {
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "no %s is called '%s'", what, name);
    return -1;
}

static PyObject *set_kernel(PyObject *args, int (*set)(bt_op, const char *)) {
    const char *op_name = NULL, *name = NULL;
    if (!PyArg_ParseTuple(args, "sz", &op_name, &name))
        return NULL;
    const bt_op op = parse_op(op_name);
    if (op == BT_OP_COUNT)
        return NULL;
    if (!set(op, name))
        return PyErr_Format(PyExc_ValueError, "%s has no kernel '%s' that this machine can run", op_name, name);
    Py_RETURN_NONE;
}

static PyObject *force_kernel(PyObject *self, PyObject *args) {
    (void)self;
    return set_kernel(args, bt_kernel_force);
}

static PyObject *set_default_kernel(PyObject *self, PyObject *args) {
    (void)self;
    return set_kernel(args, bt_kernel_set_default);
}

static PyObject *chosen_kernel(PyObject *self, PyObject *args) {
    (void)self;
    const char *op_name = NULL, *device_name = NULL, *type_name = NULL, *name = NULL;
    long long m = 0, n = 0, k = 0;
    bt_problem problem = {.digits = 1};
    if (!PyArg_ParseTuple(args, "sss|zLLLi", &op_name, &device_name, &type_name, &name, &m, &n, &k, &problem.sm))
        return NULL;
    problem.m = m, problem.n = n, problem.k = problem.group = k;
    problem.ldw = bt_div_up(k, 64) * 16; /* csrc/dispatch aligns rows that are not */
    const bt_op op = parse_op(op_name);
    const int device = op == BT_OP_COUNT ? -1 : parse_name(device_name, device_names, 2, "device");
    const int type = device < 0 ? -1 : parse_name(type_name, type_names, 4, "dtype");
    if (type < 0)
        return NULL;
    problem.halves = type == BT_F16 || type == BT_BF16;
    const bt_kernel *kernel = bt_pick(op, device, type, problem.sm ? &problem : NULL, name);
    return Py_BuildValue("z", kernel ? kernel->variant : NULL);
}

static PyMethodDef methods[] = {
    {"cpu_features", cpu_features, METH_NOARGS, "Names of the instruction sets that this CPU and its OS offer."},
    {"kernels", kernels, METH_NOARGS, "All kernels of this build, op by op, fastest first."},
    {"force_kernel", force_kernel, METH_VARARGS, "force_kernel(op, name): make a variant the choice; None undoes it."},
    {"set_default_kernel", set_default_kernel, METH_VARARGS, "The same, below what force_kernel says."},
    {"chosen_kernel", chosen_kernel, METH_VARARGS,
     "chosen_kernel(op, device, dtype, name=None, m=0, n=0, k=0, sm=0): the variant that runs, or None. With sm, "
     "which\n"
     "is 10 * major + minor of a compute capability, for a product of m tokens by a contiguous (n, k) weight."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Kernel table of bittorch; loading it registers torch.ops.bittorch.",
    -1,
    methods,
    NULL,
    NULL,
    NULL,
    NULL,
};

/* Sizes and fields of the params structs must be those that the kernels were compiled with. */
PyMODINIT_FUNC PyInit__C(void) {
    if (strcmp(bt_interface, BT_INTERFACE) != 0)
        return PyErr_Format(PyExc_ImportError, "the shim goes with the kernels %s, and beside it are %s", BT_INTERFACE,
                            bt_interface);
    return PyModule_Create(&definition);
}
