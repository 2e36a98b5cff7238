"""The methods of a `Cache` that are called most, inline, without the wrappers that Cython makes.

Such a wrapper takes a reference to each argument, those left out included, and gives all back
before it returns. Each of these writes waits for the one before it to the same counter: 7 ns of a
`set`. The caller holds the arguments anyway.

`open_doors` exchanges the C functions of `get` and `set`; name, signature and documentation stay
those of the class, whose wrappers still turn away wrong numbers of arguments.
"""

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t

from beastcore._cache cimport Cache

cdef extern from *:
    """
    typedef PyObject *(*beast_door)(PyObject *, PyObject *const *, Py_ssize_t);
    typedef PyObject *(*beast_wrapper)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
    static beast_wrapper beast_get_wrapper = NULL, beast_set_wrapper = NULL;

    /* Let `door` take the place of the wrapper of a method. -1: an error. */
    static int beast_open(PyTypeObject *type, const char *name, beast_door door,
                          beast_wrapper *wrapper) {
        PyMethodDef *method = type->tp_methods;
        PyObject *descriptor;
        int answer;
        while (strcmp(method->ml_name, name) != 0) method++;
        if (method->ml_flags == METH_FASTCALL) return 0; /* opened by another interpreter */
        *wrapper = (beast_wrapper)(void (*)(void))method->ml_meth;
        method->ml_meth = (PyCFunction)(void (*)(void))door;
        method->ml_flags = METH_FASTCALL;
        descriptor = PyDescr_NewMethod(type, method);
        if (descriptor == NULL) return -1;
        answer = PyDict_SetItemString(type->tp_dict, name, descriptor);
        Py_DECREF(descriptor);
        PyType_Modified(type);
        return answer;
    }
    """
    ctypedef PyObject* (*Door "beast_door")(PyObject*, PyObject* const*, Py_ssize_t) except NULL
    ctypedef PyObject* (*Wrapper "beast_wrapper")(PyObject*, PyObject* const*, Py_ssize_t,
                                                  PyObject*) except NULL
    Wrapper get_wrapper "beast_get_wrapper"
    Wrapper set_wrapper "beast_set_wrapper"
    int open_door "beast_open"(PyTypeObject*, const char*, Door, Wrapper*) except -1


cdef inline PyObject* get_door(PyObject* self, PyObject* const* args,
                               Py_ssize_t n) except NULL:
    """`get(key, default=None, /)`."""
    cdef PyObject* key
    cdef PyObject* found
    cdef uint32_t s
    if not 1 <= n <= 2:
        return get_wrapper(self, args, n, NULL)
    key = args[0]
    s = (<Cache>self).hit_or_miss(<object>key)
    if s != 0:
        found = (<Cache>self).slots[s].value
    else:
        found = args[1] if n == 2 else <PyObject*>None
    Py_INCREF(<object>found)
    return found


cdef inline PyObject* set_door(PyObject* self, PyObject* const* args,
                               Py_ssize_t n) except NULL:
    """`set(key, value, ttl=..., /)`."""
    cdef PyObject* key
    cdef PyObject* value
    if not 2 <= n <= 3:
        return set_wrapper(self, args, n, NULL)
    key = args[0]
    value = args[1]
    (<Cache>self).write(<object>key, <object>value, args[2] if n == 3 else NULL)
    Py_INCREF(None)
    return <PyObject*>None


cdef inline int open_doors(type cache) except -1:
    """Let `get` and `set` of the instances of `cache` be called directly."""
    open_door(<PyTypeObject*>cache, "get", get_door, &get_wrapper)
    open_door(<PyTypeObject*>cache, "set", set_door, &set_wrapper)
    return 0
