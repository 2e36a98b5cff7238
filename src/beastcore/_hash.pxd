"""Hashing and comparing of keys without calling Python where that is possible, inline."""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <string.h>

    /* Salted multiplication by 2**64 / phi (Knuth 6.4), with both halves folded before and after:
       without either fold keys at some strides cluster, with them none of thousands that were
       tried, strides made to suit the constant among them. */
    static inline uint32_t beast_mix(Py_hash_t hash, uint64_t salt) {
        uint64_t mixed = (uint64_t)hash ^ salt;
        mixed = (mixed ^ (mixed >> 32)) * 0x9E3779B97F4A7C15ULL;
        return (uint32_t)(mixed ^ (mixed >> 32));
    }

    /* The hash that a str has cached, or PyObject_Hash. */
    static inline Py_hash_t beast_hash(PyObject *key) {
        if (PyUnicode_CheckExact(key)) {
            Py_hash_t known = ((PyASCIIObject *)key)->hash;
            if (known != -1) return known;
        }
        return PyObject_Hash(key);
    }

    /* The hash of an exact str, bytes or int, which runs no Python code; 0: another key, or one
       that cannot be hashed. */
    static inline int beast_hash_plain(PyObject *key, Py_hash_t *hash) {
        if (PyUnicode_CheckExact(key)) {
            *hash = ((PyASCIIObject *)key)->hash;
            if (*hash != -1) return 1;
        } else if (!PyLong_CheckExact(key) && !PyBytes_CheckExact(key)) return 0;
        *hash = PyObject_Hash(key);
        if (*hash != -1) return 1;
        PyErr_Clear();
        return 0;
    }

    /* 1 equal, 0 different, 2 unknown: ask Python. Never runs Python code, never fails. */
    static inline int beast_same(PyObject *a, PyObject *b) {
        PyTypeObject *type = Py_TYPE(a);
        if (type != Py_TYPE(b)) return 2;
        if (type == &PyUnicode_Type) {
            Py_ssize_t n = PyUnicode_GET_LENGTH(a);
            int kind;
    #if PY_VERSION_HEX < 0x030C0000
            if (!PyUnicode_IS_READY(a) || !PyUnicode_IS_READY(b)) return 2;
    #endif
            if (n != PyUnicode_GET_LENGTH(b)) return 0;
            kind = (int)PyUnicode_KIND(a);
            if (kind != (int)PyUnicode_KIND(b)) return 0;
            return memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), (size_t)n * (size_t)kind) == 0;
        }
        if (type == &PyBytes_Type) {
            Py_ssize_t n = PyBytes_GET_SIZE(a);
            return n == PyBytes_GET_SIZE(b)
                && memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), (size_t)n) == 0;
        }
        return 2;
    }
    """
    uint32_t mix_hash "beast_mix"(Py_hash_t value, uint64_t salt) noexcept nogil
    Py_hash_t hash_key "beast_hash"(object key) except -1
    bint hash_plain "beast_hash_plain"(PyObject* key, Py_hash_t* hash) noexcept
    int same_key "beast_same"(PyObject* a, PyObject* b) noexcept nogil
