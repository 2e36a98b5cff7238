/* Bugs on purpose, one a function: a tool that does not report them proves nothing of the engine. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* An allocation that no register and no stack keeps alive. */
static void *kept;

static PyObject *overflow(PyObject *self, PyObject *arg) {
    char *memory = PyMem_Malloc(16);
    long at = PyLong_AsLong(arg);
    memory[at] = 1; /* 16: behind the end */
    PyMem_Free(memory);
    Py_RETURN_NONE;
}

static PyObject *use_after_free(PyObject *self, PyObject *arg) {
    volatile char *memory = PyMem_Malloc(16);
    memory[0] = 1;
    PyMem_Free((void *)memory);
    return PyLong_FromLong(memory[0]);
}

static PyObject *signed_overflow(PyObject *self, PyObject *arg) {
    int number = (int)PyLong_AsLong(arg);
    return PyLong_FromLong(number + 1); /* INT_MAX + 1 */
}

static PyObject *leak_memory(PyObject *self, PyObject *arg) {
    kept = PyMem_RawMalloc(1000);
    kept = NULL;
    Py_RETURN_NONE;
}

static PyObject *leak_reference(PyObject *self, PyObject *arg) {
    Py_INCREF(arg);
    Py_RETURN_NONE;
}

static PyObject *release_too_often(PyObject *self, PyObject *arg) {
    PyObject *set = PySet_New(NULL); /* lists, which are used again, would hide it */
    Py_DECREF(set);
    Py_DECREF(set);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"overflow", overflow, METH_O, NULL},
    {"use_after_free", use_after_free, METH_O, NULL},
    {"signed_overflow", signed_overflow, METH_O, NULL},
    {"leak_memory", leak_memory, METH_O, NULL},
    {"leak_reference", leak_reference, METH_O, NULL},
    {"release_too_often", release_too_often, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "seeded", NULL, -1, methods};

PyMODINIT_FUNC PyInit_seeded(void) { return PyModule_Create(&module); }
