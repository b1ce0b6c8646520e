/* The Python module `quantize.kernels.native`: buffers in, buffers out, without the interpreter's
 * lock while it works. Which build of the kernels runs is the caller's choice among BUILDS. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <string.h>

#include "kernels.h"

const struct type TYPES[TYPE_COUNT] = {
    [Q8_0] = {"Q8_0", 32, 2 + 32},
    [Q4_0] = {"Q4_0", 32, 2 + 16},
    [Q4_1] = {"Q4_1", 32, 2 + 2 + 16},
    [Q5_0] = {"Q5_0", 32, 2 + 4 + 16},
    [Q5_1] = {"Q5_1", 32, 2 + 2 + 4 + 16},
    [Q2_K] = {"Q2_K", 256, 16 + 64 + 2 + 2},
    [Q3_K] = {"Q3_K", 256, 32 + 64 + 12 + 2},
    [Q4_K] = {"Q4_K", 256, 2 + 2 + 12 + 128},
    [Q5_K] = {"Q5_K", 256, 2 + 2 + 12 + 32 + 128},
    [Q6_K] = {"Q6_K", 256, 128 + 64 + 16 + 2},
    [IQ4_NL] = {"IQ4_NL", 32, 2 + 16},
    [IQ4_XS] = {"IQ4_XS", 256, 2 + 2 + 4 + 128},
};
static const struct {
    const char *name;
    size_t bytes;
} DTYPES[] = {[DTYPE_BF16] = {"BF16", 2}, [DTYPE_F16] = {"F16", 2}, [DTYPE_F32] = {"F32", 4}};

static const char *const CODES[CODE_COUNT] = {
    [CODE_E4M3] = "E4M3", [CODE_INT8] = "INT8", [CODE_UINT8] = "UINT8", [CODE_INT4] = "INT4",
};

/* The builds that this processor can run, widest first. */
static int supported(const struct kernels **builds)
{
    int count = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        builds[count++] = &AVX512;
    if (__builtin_cpu_supports("avx2"))
        builds[count++] = &AVX2;
    builds[count++] = &BASELINE;
    return count;
}

static const struct kernels *find_build(const char *name)
{
    const struct kernels *builds[3];
    for (int i = supported(builds) - 1; i >= 0; i--)
        if (strcmp(builds[i]->name, name) == 0)
            return builds[i];
    PyErr_Format(PyExc_ValueError, "this processor has no kernels named %s", name);
    return NULL;
}

static int find_dtype(const char *name)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(DTYPES[i].name, name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "dtype %s; expected BF16, F16 or F32", name);
    return -1;
}

static int find_type(const char *name)
{
    for (int i = 0; i < TYPE_COUNT; i++)
        if (strcmp(TYPES[i].name, name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "there is no kernel for %s", name);
    return -1;
}

static int find_code(const char *name)
{
    for (int i = 0; i < CODE_COUNT; i++)
        if (strcmp(CODES[i], name) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "there is no kernel for codes of %s", name);
    return -1;
}

/* 0 if the buffer holds exactly that many bytes. */
static int check_size(const Py_buffer *buffer, size_t bytes, const char *what)
{
    if ((size_t)buffer->len == bytes)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: %zd bytes, expected %zu", what, buffer->len, bytes);
    return -1;
}

/* What every function is given first: the build, the dtype, the rows and their columns. */
struct input {
    const struct kernels *build;
    struct rows rows;
};

static int read_input(struct input *input, const char *build, const char *dtype,
                      const Py_buffer *values, Py_ssize_t columns)
{
    input->build = find_build(build);
    input->rows.dtype = input->build ? find_dtype(dtype) : -1;
    if (input->rows.dtype < 0)
        return -1;
    size_t width = DTYPES[input->rows.dtype].bytes, row_bytes = width * (size_t)columns;
    if (columns <= 0 || (size_t)columns > SIZE_MAX / width || (size_t)values->len % row_bytes) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are no rows of %zd columns", values->len,
                     columns);
        return -1;
    }
    input->rows.values = values->buf;
    input->rows.columns = (size_t)columns;
    input->rows.count = (size_t)values->len / row_bytes;
    return 0;
}

static int run_quantize(const struct input *input, const char *name, const Py_buffer *importance,
                        Py_buffer *blocks)
{
    struct rows rows = input->rows;
    int type = find_type(name);
    if (type < 0)
        return -1;
    size_t values = TYPES[type].values, per_row = rows.columns / values;
    if (rows.columns % values) {
        PyErr_Format(PyExc_ValueError, "%zu columns are no blocks of %zu", rows.columns, values);
        return -1;
    }
    if (importance->buf && check_size(importance, 4 * rows.columns, "importance"))
        return -1;
    if (check_size(blocks, rows.count * per_row * TYPES[type].bytes, "blocks"))
        return -1;
    Py_BEGIN_ALLOW_THREADS
    input->build->quantize(type, rows, importance->buf, blocks->buf);
    Py_END_ALLOW_THREADS
    return 0;
}

static PyObject *py_quantize(PyObject *module, PyObject *args)
{
    const char *build, *dtype, *name;
    Py_buffer values, importance, blocks;
    Py_ssize_t columns;
    struct input input;
    if (!PyArg_ParseTuple(args, "ssy*nsz*w*", &build, &dtype, &values, &columns, &name, &importance,
                          &blocks))
        return NULL;
    int failed = read_input(&input, build, dtype, &values, columns) ||
                 run_quantize(&input, name, &importance, &blocks);
    PyBuffer_Release(&values);
    PyBuffer_Release(&importance);
    PyBuffer_Release(&blocks);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyObject *py_absmax(PyObject *module, PyObject *args)
{
    const char *build, *dtype;
    Py_buffer values, out;
    Py_ssize_t columns;
    struct input input;
    if (!PyArg_ParseTuple(args, "ssy*nw*", &build, &dtype, &values, &columns, &out))
        return NULL;
    int failed = read_input(&input, build, dtype, &values, columns) ||
                 check_size(&out, 4 * input.rows.count, "absmax");
    if (!failed) {
        struct rows rows = input.rows;
        Py_BEGIN_ALLOW_THREADS
        input.build->absmax(rows, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyObject *py_codes(PyObject *module, PyObject *args)
{
    const char *build, *dtype, *rounded, *name;
    Py_buffer values, scales, out;
    Py_ssize_t columns;
    struct input input;
    if (!PyArg_ParseTuple(args, "ssy*nssy*w*", &build, &dtype, &values, &columns, &rounded, &name,
                          &scales, &out))
        return NULL;
    int code = find_code(name), to = find_dtype(rounded);
    int failed = code < 0 || to < 0 || read_input(&input, build, dtype, &values, columns) ||
                 check_size(&scales, 4 * input.rows.count, "scales") ||
                 check_size(&out, input.rows.count * input.rows.columns, "codes");
    if (!failed) {
        struct rows rows = input.rows;
        Py_BEGIN_ALLOW_THREADS
        input.build->codes(rows, to, code, scales.buf, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&out);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef METHODS[] = {
    {"quantize", py_quantize, METH_VARARGS,
     "quantize(build, dtype, rows, columns, type, importance, blocks): fill blocks."},
    {"absmax", py_absmax, METH_VARARGS,
     "absmax(build, dtype, rows, columns, out): each row's largest magnitude, as float32."},
    {"codes", py_codes, METH_VARARGS,
     "codes(build, dtype, rows, columns, rounded, code, scales, out): codes of rows / scales."},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module)
{
    const struct kernels *builds[3];
    int count = supported(builds), failed = 0;
    PyObject *names = PyTuple_New(count), *types = PyTuple_New(TYPE_COUNT);
    PyObject *sizes = PyTuple_New(TYPE_COUNT);
    if (!names || !types || !sizes)
        return -1;
    for (int i = 0; i < count; i++)
        failed |= PyTuple_SetItem(names, i, PyUnicode_FromString(builds[i]->name));
    for (int i = 0; i < TYPE_COUNT; i++) {
        failed |= PyTuple_SetItem(types, i, PyUnicode_FromString(TYPES[i].name));
        failed |= PyTuple_SetItem(sizes, i, Py_BuildValue("ii", TYPES[i].values, TYPES[i].bytes));
    }
    failed |= PyModule_AddObjectRef(module, "BUILDS", names);
    failed |= PyModule_AddObjectRef(module, "TYPES", types);
    failed |= PyModule_AddObjectRef(module, "SIZES", sizes);
    Py_DECREF(names);
    Py_DECREF(types);
    Py_DECREF(sizes);
    return failed;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, (void *)fill_module}, {0, NULL}};
static PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "quantize.kernels.native", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_native(void) { return PyModuleDef_Init(&MODULE); }
