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

    /* Whether two exact ints are equal. Their digits are public, but where they lie is not stable:
       from 3.12 on the low three bits of the tag hold the sign and flags, of which only the first
       two concern the value. */
    static inline int beast_same_int(PyLongObject *a, PyLongObject *b) {
        Py_ssize_t i, n;
        const digit *x, *y;
    #if PY_VERSION_HEX >= 0x030C0000
        uintptr_t one = a->long_value.lv_tag, two = b->long_value.lv_tag;
        if ((one ^ two) & ~(uintptr_t)4) return 0;
        n = (Py_ssize_t)(one >> 3);
        x = a->long_value.ob_digit;
        y = b->long_value.ob_digit;
    #else
        n = Py_SIZE(a);
        if (n != Py_SIZE(b)) return 0;
        if (n < 0) n = -n;
        x = a->ob_digit;
        y = b->ob_digit;
    #endif
        for (i = 0; i < n; i++)
            if (x[i] != y[i]) return 0;
        return 1;
    }

    /* 1 equal, 0 different, 2 neither str, bytes nor int, or not the same of them. */
    static inline int beast_same_plain(PyObject *a, PyObject *b) {
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
        if (type == &PyLong_Type) return beast_same_int((PyLongObject *)a, (PyLongObject *)b);
        if (type == &PyBytes_Type) {
            Py_ssize_t n = PyBytes_GET_SIZE(a);
            return n == PyBytes_GET_SIZE(b)
                && memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), (size_t)n) == 0;
        }
        return 2;
    }

    /* The same for exact tuples: known if all items before the first that differs are plain. */
    static inline int beast_same_tuple(PyObject *a, PyObject *b) {
        Py_ssize_t i, n = PyTuple_GET_SIZE(a);
        if (n != PyTuple_GET_SIZE(b)) return 0;
        for (i = 0; i < n; i++) {
            PyObject *x = PyTuple_GET_ITEM(a, i), *y = PyTuple_GET_ITEM(b, i);
            int same = x == y ? 1 : beast_same_plain(x, y);
            if (same != 1) return same;
        }
        return 1;
    }

    /* 1 equal, 0 different, 2 unknown: ask Python. Never runs Python code, never fails. */
    static inline int beast_same(PyObject *a, PyObject *b) {
        int same = beast_same_plain(a, b);
        if (same == 2 && PyTuple_CheckExact(a) && PyTuple_CheckExact(b))
            same = beast_same_tuple(a, b);
        return same;
    }

    /* Compare by Python, as PyObject_RichCompareBool does: 1 equal, 0 different, -1 an error. Of
       two keys of one type the type's own comparison is asked at once. On success the caller has
       a new reference to `held`, which must live until what was compared has been looked at. */
    static inline int beast_ask(PyObject *held, PyObject *key) {
        int same;
        Py_INCREF(held);
        if (Py_TYPE(held) == Py_TYPE(key) && Py_TYPE(held)->tp_richcompare != NULL) {
            PyObject *answer = Py_TYPE(held)->tp_richcompare(held, key, Py_EQ);
            if (answer == Py_NotImplemented && Py_TYPE(key)->tp_richcompare != NULL) {
                Py_DECREF(answer);
                answer = Py_TYPE(key)->tp_richcompare(key, held, Py_EQ);
            }
            if (answer == Py_True) same = 1;
            else if (answer == Py_False || answer == Py_NotImplemented) same = 0;
            else same = answer == NULL ? -1 : PyObject_IsTrue(answer);
            Py_XDECREF(answer);
        }
        else same = PyObject_RichCompareBool(held, key, Py_EQ);
        if (same < 0) Py_DECREF(held);
        return same;
    }
    """
    int ask_key "beast_ask"(PyObject* held, object key) except -1
    uint32_t mix_hash "beast_mix"(Py_hash_t value, uint64_t salt) noexcept nogil
    Py_hash_t hash_key "beast_hash"(object key) except -1
    bint hash_plain "beast_hash_plain"(PyObject* key, Py_hash_t* hash) noexcept
    int same_key "beast_same"(PyObject* a, PyObject* b) noexcept nogil
