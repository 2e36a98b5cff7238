"""Calling, and being called, by vectorcall: without a tuple and a dict for the arguments.

Arguments lie in an array: `nargsf` positional ones, then the values of the keyword arguments whose
names are in the tuple `kwnames`. An `instance` that is not NULL goes in front of them.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM

cdef extern from *:
    """
    static inline int beast_refers_to(PyObject *ref, PyObject *object) {
    #if PY_VERSION_HEX >= 0x030D0000
        PyObject *found = NULL;
        int same = PyWeakref_GetRef(ref, &found) == 1 && found == object;
        Py_XDECREF(found);
        return same;
    #else
        return PyWeakref_GET_OBJECT(ref) == object;
    #endif
    }

    static inline int beast_is_own_key(PyObject *object) {
        return PyUnicode_CheckExact(object) || PyLong_CheckExact(object)
            || PyBytes_CheckExact(object);
    }

    static inline PyObject *beast_type_of(PyObject *object) {
        return (PyObject *)Py_TYPE(object);
    }

    static inline int beast_is_instance(PyObject *object, PyObject *type) {
        return PyObject_TypeCheck(object, (PyTypeObject *)type);
    }

    static void beast_enable_vectorcall(PyObject *type, Py_ssize_t offset) {
        ((PyTypeObject *)type)->tp_vectorcall_offset = offset;
        ((PyTypeObject *)type)->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
        ((PyTypeObject *)type)->tp_call = PyVectorcall_Call;
        PyType_Modified((PyTypeObject *)type);
    }
    """
    bint refers_to "beast_refers_to"(PyObject* ref, PyObject* instance) noexcept
    bint is_own_key "beast_is_own_key"(PyObject* value) noexcept
    PyObject* type_of "beast_type_of"(PyObject* value) noexcept
    bint is_instance "beast_is_instance"(PyObject* value, PyObject* type) noexcept
    void enable_vectorcall "beast_enable_vectorcall"(PyObject* type, Py_ssize_t offset) noexcept

cdef extern from "Python.h":
    ctypedef PyObject* (*vectorcallfunc)(PyObject*, PyObject**, size_t, PyObject*)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    Py_ssize_t PyVectorcall_NARGS(size_t) noexcept
    object PyVectorcall_Call(object, object, PyObject*)
    object PyObject_Vectorcall(object, PyObject**, size_t, PyObject*)
    object PyLong_FromVoidPtr(void*)
    PyObject* PyDict_GetItemWithError(dict, object) except? NULL
    bint PyCoro_CheckExact(object) noexcept

    ctypedef struct PyTupleStruct "PyTupleObject":
        PyObject* ob_item[1]


cdef inline PyObject** items(tuple values) noexcept:
    """Return the array of a tuple's items."""
    return &(<PyTupleStruct*>values).ob_item[0]


cdef inline Py_ssize_t put_item(tuple values, Py_ssize_t i, PyObject* item) noexcept:
    """Put a new reference to `item` into place i of a new tuple; return i + 1."""
    Py_INCREF(<object>item)
    PyTuple_SET_ITEM(values, i, <object>item)
    return i + 1


cdef inline object invoke(object function, PyObject* instance, PyObject** args, size_t nargsf,
                          object kwnames):
    """Call `function` with the arguments, the instance (if not NULL) in front."""
    cdef PyObject* names = NULL if kwnames is None else <PyObject*>kwnames
    cdef PyObject* spared
    cdef Py_ssize_t nargs = PyVectorcall_NARGS(nargsf)
    cdef Py_ssize_t i, n
    if instance == NULL:
        return PyObject_Vectorcall(function, args, nargs, names)
    if nargsf & PY_VECTORCALL_ARGUMENTS_OFFSET:
        spared = args[-1]
        args[-1] = instance
        try:
            return PyObject_Vectorcall(function, args - 1, nargs + 1, names)
        finally:
            args[-1] = spared
    n = nargs + (0 if kwnames is None else PyTuple_GET_SIZE(kwnames))
    cdef tuple full = PyTuple_New(n + 1)
    put_item(full, 0, instance)
    for i in range(n):
        put_item(full, i + 1, args[i])
    return PyObject_Vectorcall(function, items(full), nargs + 1, names)
