"""cached: a memoizer of functions, methods and coroutine functions over `Cache`.

Data structure
    A `CachedFunction` holds one `Results` for its plain calls and, for method calls, one for each
    living instance, in a dict under the instance's `id`. A `Results` holds a `Cache`, the counters
    and the runs under way that calls may join. Nothing is made before the first call that needs
    it. A `CachedMethod` is a function bound to an instance, made by `obj.method`.

Off the path of a fresh hit the work is done in Python, by modules that both twins share: runs of
    coroutines in _singleflight.py, of threads in _threadflight.py, refreshes of stale results in
    _refresh.py, kept errors in _failure.py, circles of runs that wait for each other in _runs.py.

Calls
    Both are called through vectorcall, which Cython does not offer to classes: `call_function`
    and `call_method` sit in the objects, and the types are told where at import. So a call takes
    no tuple and no dict; a single positional argument of exact type str, int or bytes is its own
    key, all others go into a `Key`, which is hashed once.

Invariants (`_check()` verifies them by number)
    1  `instances[i]` refers weakly to an object of identity i, or to a dead one whose callback is
       still to come; nothing else of a `CachedFunction` refers to an instance.
    2  Results in a given cache carry a token of their function or instance, others do not.

Ownership
    Every reference is a field that Cython counts and shows to the garbage collector.

Python code
    (hashing, comparing, `key`, the function itself) runs between whole operations of the cache
    and of the dict of instances. What a call still needs then, it holds.

Threads
    The interpreter's lock protects everything; no method releases it. A result is stored only
    after the function has returned, so two threads may both run it: the later result stays.
    With single-flight one of them runs it, and the others wait for a lock that it holds.
"""

cimport cython
from cpython.object cimport Py_EQ, PyObject, PyObject_Hash, PyObject_RichCompareBool
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New
from libc.stdint cimport uint64_t

from beastcore._cache cimport Cache
from beastcore._vectorcall cimport (
    PY_VECTORCALL_ARGUMENTS_OFFSET,
    PyCoro_CheckExact,
    PyDict_GetItemWithError,
    PyLong_FromVoidPtr,
    PyVectorcall_Call,
    PyVectorcall_NARGS,
    enable_vectorcall,
    invoke,
    is_instance,
    is_own_key,
    items,
    put_item,
    refers_to,
    type_of,
    vectorcallfunc,
)

import asyncio
import inspect
import types

from beastcore._decorate import (
    Token,
    check_function,
    check_options,
    check_result,
    death_callback,
    dress,
    instance_ref,
    is_function_like,
    name_of,
    owner_of,
)
from beastcore._failure import KeptError, kept_error
from beastcore._refresh import Refresh
from beastcore._singleflight import Flights
from beastcore._threadflight import MISSING as _MISSING, ThreadFlights
from beastcore._types import CacheInfo

__all__ = ["CachedFunction", "CachedMethod", "cached"]

cdef object MISSING = _MISSING
cdef object KEPT = KeptError
cdef object KEYWORDS = object()  # stands between positional and keyword arguments in a key


@cython.final
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Key:
    """The key of a call: its arguments, hashed once.

    One to three plain positional arguments lie in `first`, `second` and `third`; everything else
    in the tuple `parts`. Which of the two it is depends on the shape of the call alone, so equal
    calls of one function have keys of one kind.
    """

    cdef Py_hash_t hash
    cdef int n                 # arguments in the fields; 0: they are in `parts`
    cdef object first, second, third
    cdef tuple parts

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        if type(other) is not Key:
            return NotImplemented
        cdef Key key = <Key>other
        if self.hash != key.hash or self.n != key.n:
            return False
        if self.n == 0:
            return PyObject_RichCompareBool(self.parts, key.parts, Py_EQ)
        return (PyObject_RichCompareBool(self.first, key.first, Py_EQ)
                and (self.n < 2 or PyObject_RichCompareBool(self.second, key.second, Py_EQ))
                and (self.n < 3 or PyObject_RichCompareBool(self.third, key.third, Py_EQ)))

    def __repr__(self):
        if self.n == 0:
            return f"<call {self.parts!r}>"
        return f"<call {(self.first, self.second, self.third)[:self.n]!r}>"


cdef Key small_key(PyObject** args, Py_ssize_t nargs):
    """Return the key of one to three positional arguments."""
    cdef Key key = Key.__new__(Key)
    cdef uint64_t mixed = hash_into(<uint64_t>nargs, args[0])
    key.n = <int>nargs
    key.first = <object>args[0]
    if nargs > 1:
        key.second = <object>args[1]
        mixed = hash_into(mixed, args[1])
    if nargs > 2:
        key.third = <object>args[2]
        mixed = hash_into(mixed, args[2])
    key.hash = <Py_hash_t>(mixed & 0x7FFFFFFF if sizeof(Py_hash_t) == 4 else mixed >> 1)
    return key


cdef inline uint64_t hash_into(uint64_t mixed, PyObject* value) except? 0:
    """Mix the hash of `value` into `mixed` (multiplier of splitmix64)."""
    mixed = (mixed ^ <uint64_t>PyObject_Hash(<object>value)) * <uint64_t>0x9E3779B97F4A7C15
    return mixed ^ (mixed >> 29)


@cython.final
@cython.auto_pickle(False)
cdef class Results:
    """The results of one function, or of one method of one instance, with their counters."""

    cdef Cache fast            # `cache` if it is a compiled one
    cdef object cache
    cdef unsigned long long hits, misses, epoch
    cdef bint weighted
    cdef double stale          # seconds before its end at which an entry is stale; 0: never
    cdef object options
    cdef object token
    cdef object ref            # weak reference to the instance, or None
    cdef object flights        # runs of coroutines under way, or None before the first
    cdef object thread_flights  # runs of threads under way, or None before the first

    def __cinit__(self, cache, token, options):
        self.cache = cache
        self.options = options
        self.stale = options.stale
        if type(cache) is Cache:
            self.fast = <Cache>cache
        self.token = token
        self.weighted = getattr(cache, "max_weight", None) is not None

    cdef int clear(self) except -1:
        """Forget the counters and the runs under way, which are not stored when they end."""
        self.epoch += 1
        self.hits = 0
        self.misses = 0
        if self.flights is not None:
            self.flights.forget()
        if self.thread_flights is not None:
            self.thread_flights.forget()
        return 0

    cdef object flights_of_threads(self):
        """Return the runs of threads that are under way."""
        if self.thread_flights is None:
            self.thread_flights = ThreadFlights()
        return self.thread_flights

    cdef object find(self, object key):
        """Return the kept result or MISSING."""
        if self.fast is not None:
            return self.fast.lookup(key, MISSING)
        return self.cache.get(key, MISSING)

    cdef object find_aged(self, object key, bint* is_stale):
        """Return the kept result or MISSING; set whether it is in the stale part of its life.

        A kept error is never stale.
        """
        cdef double left
        is_stale[0] = False
        if self.stale == 0.0 or self.fast is None:
            value = self.find(key)
            if self.stale != 0.0 and value is not MISSING and not is_kept(value):
                is_stale[0] = self.is_stale(key)
            return value
        value = self.fast.lookup_left(key, MISSING, &left)
        is_stale[0] = left <= self.stale and not is_kept(value)
        return value

    cdef bint is_stale(self, object key) except -1:
        """Whether the entry that was found under `key` is in the stale part of its life."""
        try:
            left = self.cache.expires_in(key)
        except KeyError:  # it ended since
            return True
        return left is not None and left <= self.stale

    cdef object look(self, object key):
        """Return the kept result if it is fresh, counting a hit, or MISSING; or raise its error."""
        value = self.cache.peek(key, MISSING)
        if value is MISSING:
            return value
        if is_kept(value):
            self.hits += 1
            raise value.fresh()
        if self.stale != 0.0 and self.is_stale(key):
            return MISSING
        self.hits += 1
        return value

    cdef int store(self, object key, object value, unsigned long long epoch) except -1:
        """Store a result, unless `clear` came since the run began or it is too heavy."""
        if epoch != self.epoch:
            return 0
        if not self.weighted:
            return self.put(key, value)
        rejections = self.cache.stats().rejections
        try:
            self.put(key, value)
        except ValueError:
            # Heavier than max_weight: the cache has counted it, the caller still gets the value.
            if self.cache.stats().rejections == rejections:
                raise
        return 0

    cdef int put(self, object key, object value) except -1:
        if self.options.life is not None:
            self.cache.set(key, value, self.options.life)
        elif self.fast is not None:
            self.fast.store(key, value)
        else:
            self.cache.set(key, value)
        return 0

    cdef int store_error(self, object key, object error, unsigned long long epoch) except -1:
        """Store a copy of what the function raised, under the conditions of `store`."""
        kept = kept_error(error)
        if kept is not None and epoch == self.epoch:
            self.cache.set(key, kept, self.options.error_ttl)
        return 0


cdef inline bint is_kept(object value) noexcept:
    """Whether a value found in a cache stands for an error."""
    return type_of(<PyObject*>value) == <PyObject*>KEPT


@cython.final
@cython.auto_pickle(False)
cdef class CachedFunction:
    """A function whose results are kept; what `cached` returns."""

    # what a hit reads
    cdef vectorcallfunc vectorcall
    cdef Results own           # of plain calls; None before the first
    cdef tuple owners          # classes in whose namespace the function sits, or None
    cdef object key
    cdef bint typed, is_coroutine
    cdef bint plain            # no option asks for more than keeping results
    cdef object function
    cdef dict instances        # id -> Results
    # the rest
    cdef object __weakref__
    cdef dict __dict__
    cdef object options, given, token, drop
    cdef unsigned long long retired_hits, retired_misses

    def __cinit__(self, function, options):
        self.vectorcall = <vectorcallfunc>call_function
        self.instances = {}
        self.is_coroutine = check_function(function, options)
        self.function = function
        self.options = options
        self.plain = not (options.single_flight or options.stale or options.errors)
        self.key = options.key
        self.typed = options.typed
        self.given = options.cache
        self.token = Token(name_of(function))
        self.drop = death_callback(self)
        dress(self, function, self.is_coroutine)

    @classmethod
    def __class_getitem__(cls, item, /):
        return types.GenericAlias(cls, item)

    # -- calls -------------------------------------------------------------------------------

    def __call__(self, /, *args, **kwargs):
        """Return the kept result for these arguments, or run the function and keep its result."""
        return PyVectorcall_Call(self, args, <PyObject*>kwargs)

    cdef object make_key(self, Results results, PyObject* instance, PyObject** args, size_t nargsf,
                         object kwnames):
        """Return the key of a call whose single argument is not its own key."""
        cdef Py_ssize_t nargs = PyVectorcall_NARGS(nargsf)
        cdef Py_ssize_t n_keywords = 0 if kwnames is None else PyTuple_GET_SIZE(kwnames)
        cdef Py_ssize_t i, n = 0, size = nargs
        if self.key is not None:
            return invoke(self.key, instance, args, nargsf, kwnames)
        if results.token is not None:
            size += 1
        if n_keywords:
            size += 1 + 2 * n_keywords
        if self.typed:
            size += nargs + n_keywords
        if size == nargs and 0 < nargs <= 3:
            return small_key(args, nargs)
        cdef tuple parts = PyTuple_New(size)
        if results.token is not None:
            n = put_item(parts, n, <PyObject*>results.token)
        for i in range(nargs):
            n = put_item(parts, n, args[i])
        if n_keywords:
            n = put_item(parts, n, <PyObject*>KEYWORDS)
            for i in range(n_keywords):
                n = put_item(parts, n, PyTuple_GET_ITEM(kwnames, i))
                n = put_item(parts, n, args[nargs + i])
        if self.typed:
            for i in range(nargs + n_keywords):
                n = put_item(parts, n, type_of(args[i]))
        cdef Key key = Key.__new__(Key)
        key.parts = parts
        key.hash = PyObject_Hash(parts)
        return key

    cdef object answer(self, Results results, PyObject* instance, PyObject** args, size_t nargsf,
                       PyObject* kwnames):
        """Answer a call; `args` is without the instance, which is NULL for a plain call."""
        names = None if kwnames == NULL else <object>kwnames
        if self.is_coroutine:
            return answer_later(self.pack(results, instance, args, nargsf, names))
        if (kwnames == NULL and self.key is None and results.token is None
                and PyVectorcall_NARGS(nargsf) == 1 and is_own_key(args[0])):
            key = <object>args[0]
        else:
            key = self.make_key(results, instance, args, nargsf, names)
        if not self.plain:
            return self.answer_fully(results, instance, args, nargsf, names, key)
        value = results.find(key)
        if value is not MISSING:
            results.hits += 1
            if is_kept(value):  # by another function on the cache
                raise value.fresh()
            return value
        results.misses += 1
        cdef unsigned long long epoch = results.epoch
        value = invoke(self.function, instance, args, nargsf, names)
        if PyCoro_CheckExact(value):
            check_result(value, self.function)
        results.store(key, value, epoch)
        return value

    cdef object answer_fully(self, Results results, PyObject* instance, PyObject** args,
                             size_t nargsf, object names, object key):
        """`answer` for a plain function with single-flight, stale results or kept errors."""
        cdef bint is_stale
        cdef Call call
        value = results.find_aged(key, &is_stale)
        if value is not MISSING and not is_stale:
            results.hits += 1
            if is_kept(value):
                raise value.fresh()
            return value
        call = self.pack(results, instance, args, nargsf, names)
        call.key = key
        options = self.options
        if is_stale:
            refresh = Refresh(call, results.flights_of_threads(), options.single_flight,
                              options.errors)
            return refresh.serve(value, options.refresh)
        if options.single_flight:
            return results.flights_of_threads().answer(call)
        return call.run()

    cdef Call pack(self, Results results, PyObject* instance, PyObject** args, size_t nargsf,
                   object names):
        """Return what a call needs if it goes on when its caller's array of arguments is gone."""
        cdef Call call = Call.__new__(Call)
        cdef Py_ssize_t n = PyVectorcall_NARGS(nargsf)
        cdef Py_ssize_t size = n
        if names is not None:
            call.names = names
            size += PyTuple_GET_SIZE(names)
        call.function = self
        call.results = results
        if instance != NULL:
            call.instance = <object>instance
            call.has_instance = True
        call.nargs = n
        cdef tuple arguments = PyTuple_New(size)
        for n in range(size):
            put_item(arguments, n, args[n])
        call.args = arguments
        return call

    # -- results -----------------------------------------------------------------------------

    cdef object new_cache(self):
        """Return the given cache, or a new one."""
        if self.given is not None:
            return self.given
        return Cache(self.options.maxsize, self.options.ttl, timer=self.options.timer)

    cdef Results make_own(self):
        """Return the results of calls that are not method calls, made at the first."""
        if self.own is None:
            token = self.token if self.given is not None else None
            made = Results(self.new_cache(), token, self.options)
            if self.own is None:
                self.own = made
        return self.own

    cdef Results find_results(self, PyObject* instance):
        """Return the results of an instance, or None."""
        cdef PyObject* found = PyDict_GetItemWithError(self.instances, PyLong_FromVoidPtr(instance))
        if found == NULL:
            return None
        # An identity may be used again if the reference's callback could not run.
        if not refers_to(<PyObject*>(<Results>found).ref, instance):
            return None
        return <Results>found

    cdef Results results_of(self, PyObject* instance):
        """Return the results of an instance, made at its first call."""
        cdef Results results = self.find_results(instance)
        if results is not None:
            return results
        ref = instance_ref(<object>instance, self.function, self.drop)
        token = None
        if self.given is not None:
            token = Token(f"{self.token.name} of an instance", self.token)
        cdef Results made = Results(self.new_cache(), token, self.options)
        made.ref = ref
        results = self.find_results(instance)
        if results is not None:
            return results  # another thread, or a finalizer, was first
        self.instances[ref.ident] = made
        return made

    def _retire(self, ref, /):
        """Drop the results of an instance that has died, keeping its counts in the sums."""
        cdef Results results = self.instances.get(ref.ident)
        if results is not None and results.ref is ref:
            del self.instances[ref.ident]
            self.retired_hits += results.hits
            self.retired_misses += results.misses

    cdef list all_results(self):
        """Return every store of results: the function's own and the living instances'."""
        cdef list every = list(self.instances.values())
        if self.own is not None:
            every.append(self.own)
        return every

    cdef int remove_from_given(self, object token) except -1:
        """Remove, from the given cache, what belongs to `token`. O(entries)."""
        if self.given is None:
            return 0
        if self.key is not None:
            self.given.clear()
            return 0
        cdef list mine = []
        for key in self.given.keys():
            if type(key) is Key and (<Key>key).parts and token.covers((<Key>key).parts[0]):
                mine.append(key)
        self.given.delete_many(mine)
        return 0

    cdef object info(self, hits, misses, currsize):
        """Return a CacheInfo; with a given cache maxsize and currsize are those of the cache."""
        if self.given is not None:
            return CacheInfo(hits, misses, self.given.maxsize, len(self.given))
        return CacheInfo(hits, misses, self.options.maxsize, currsize)

    def cache_info(self):
        """Return hits, misses, maxsize and currsize; for a method summed over its instances.

        The counts of instances that have died stay in the sums. With a given cache, `maxsize`
        and `currsize` are those of the cache, whoever uses it. O(instances).
        """
        cdef Results results
        hits, misses, currsize = self.retired_hits, self.retired_misses, 0
        for results in self.all_results():
            hits += results.hits
            misses += results.misses
            currsize += len(results.cache)
        return self.info(hits, misses, currsize)

    def cache_clear(self):
        """Remove every result of this function and set its counters to 0.

        A run under way is not stored when it ends. From a given cache only this function's
        results are removed, in O(entries); with `key=`, whose keys nobody can tell apart, all.
        """
        cdef Results results
        self.retired_hits = self.retired_misses = 0
        for results in self.all_results():
            results.clear()
            if self.given is None:
                results.cache.clear()
        self.remove_from_given(self.token)

    @property
    def cache(self):
        """The `Cache` of the function's results; that of one instance is `obj.method.cache`."""
        return self.make_own().cache

    # -- methods -----------------------------------------------------------------------------

    def __set_name__(self, owner, name, /):
        if self.owners is None:
            self.owners = (owner,)
        elif owner not in self.owners:
            self.owners += (owner,)

    def __get__(self, instance, owner):
        if instance is None:
            found = owner_of(self, owner) if owner is not None else None
            if found is not None:
                self.__set_name__(found, "")
            return self
        if instance is owner:
            # classmethod of Python 3.11 and 3.12 binds through here, from 3.13 it does not.
            return types.MethodType(self, instance)
        cdef CachedMethod method = CachedMethod.__new__(CachedMethod)
        method.function = self
        method.instance = instance
        return method

    # -- identity ----------------------------------------------------------------------------

    def _check(self):
        """Verify the invariants of the head of this file; AssertionError names the broken one."""
        cdef Results results
        for ident, results in list(self.instances.items()):
            alive = None if results.ref is None else results.ref()
            if results.ref is None or results.ref.ident != ident:
                raise AssertionError("invariant 1: results filed under another identity")
            if alive is not None and id(alive) != ident:
                raise AssertionError("invariant 1: results of another instance")
        for results in self.all_results():
            if (results.token is None) != (self.given is None):
                raise AssertionError("invariant 2: token without a given cache, or none with one")
            if self.given is None:
                results.cache._check()

    def __repr__(self):
        return f"<cached function {self.token.name}>"

    def __reduce__(self):
        return self.__qualname__

    def __copy__(self):
        return self

    def __deepcopy__(self, memo, /):
        return self


@cython.final
@cython.freelist(16)
@cython.auto_pickle(False)
cdef class CachedMethod:
    """A cached function bound to an instance, as `obj.method` gives it."""

    cdef vectorcallfunc vectorcall
    cdef CachedFunction function
    cdef object instance
    cdef object __weakref__

    def __cinit__(self, *args):
        # Without arguments in `__get__`, which fills it at once, or by someone's bare `__new__`.
        self.vectorcall = <vectorcallfunc>call_method
        self.function = NOBODY

    def __init__(self, CachedFunction function not None, instance, /):
        if self.function is not NOBODY:  # calls under way rely on function and instance
            raise TypeError("a CachedMethod cannot be bound to another instance")
        self.function = function
        self.instance = instance

    @classmethod
    def __class_getitem__(cls, item, /):
        return types.GenericAlias(cls, item)

    def __call__(self, /, *args, **kwargs):
        """Return the instance's kept result for these arguments, or run the method and keep it."""
        return PyVectorcall_Call(self, args, <PyObject*>kwargs)

    @property
    def __self__(self):
        """The instance."""
        return self.instance

    @property
    def __func__(self):
        """The `CachedFunction`."""
        return self.function

    @property
    def __doc__(self):
        return self.function.__doc__

    @property
    def __signature__(self):
        return inspect.signature(types.MethodType(self.function, self.instance))

    def cache_info(self):
        """Return hits, misses, maxsize and currsize of this instance's results."""
        cdef Results results = self.function.find_results(<PyObject*>self.instance)
        if results is None:
            return self.function.info(0, 0, 0)
        return self.function.info(results.hits, results.misses, len(results.cache))

    def cache_clear(self):
        """Remove the results of this instance and set its counters to 0."""
        cdef Results results = self.function.find_results(<PyObject*>self.instance)
        if results is None:
            return
        results.clear()
        if results.token is None:
            results.cache.clear()
        else:
            self.function.remove_from_given(results.token)

    @property
    def cache(self):
        """The `Cache` of this instance's results."""
        return self.function.results_of(<PyObject*>self.instance).cache

    def __getattr__(self, name):
        if name == "__wrapped__":  # the signature of what is wrapped begins with the instance
            raise AttributeError(f"'CachedMethod' object has no attribute {name!r}")
        return getattr(self.function, name)

    def __eq__(self, other):
        if type(other) is not CachedMethod:
            return NotImplemented
        return (self.instance is (<CachedMethod>other).instance
                and self.function is (<CachedMethod>other).function)

    def __hash__(self):
        return hash((id(self.instance), id(self.function)))

    def __repr__(self):
        return f"<cached method {self.function.token.name} of {self.instance!r}>"

    def __reduce__(self):
        return getattr, (self.instance, self.function.__name__)


@cython.final
@cython.freelist(16)
@cython.auto_pickle(False)
cdef class Call:
    """A call that outlives its caller's array: of a coroutine function, or one with options.

    The methods below `get_key` are those of `_threadflight.SyncCall`.
    """

    cdef CachedFunction function
    cdef Results results
    cdef object instance
    cdef bint has_instance
    cdef tuple args            # positional arguments, then the values of the keyword ones
    cdef Py_ssize_t nargs
    cdef object names          # of the keyword arguments, or None
    cdef object key            # of a plain function's call
    cdef bint is_stale         # what `find` found

    cdef int check(self) except -1:
        """Raise TypeError for what a bare `__new__` has made."""
        if self.function is None:
            raise TypeError("this call was never made")
        return 0

    cdef PyObject* instance_pointer(self) noexcept:
        return <PyObject*>self.instance if self.has_instance else NULL

    cdef object make_key(self):
        """Return the key of the call."""
        cdef CachedFunction function = self.function
        self.check()
        if (self.names is None and function.key is None and self.results.token is None
                and self.nargs == 1 and is_own_key(PyTuple_GET_ITEM(self.args, 0))):
            return <object>PyTuple_GET_ITEM(self.args, 0)
        return function.make_key(self.results, self.instance_pointer(), items(self.args),
                                 self.nargs, self.names)

    cdef object find(self, object key):
        """Return the kept result or MISSING, and note whether it is stale."""
        return self.results.find_aged(key, &self.is_stale)

    cdef object begin(self):
        """Call the function; return its result or, of a coroutine function, what to await."""
        return invoke(self.function.function, self.instance_pointer(), items(self.args),
                      self.nargs, self.names)

    def get_key(self):
        """Return its key."""
        return self.key

    def get_function(self):
        """Return the function."""
        self.check()
        return self.function.function

    def note_hit(self):
        """Count a hit."""
        self.check()
        self.results.hits += 1

    def look(self):
        """Return the kept result if it is fresh, counting a hit, else MISSING."""
        self.check()
        return self.results.look(self.key)

    def run(self):
        """Run the function, counting a miss, and keep what it returns or raises."""
        self.check()
        cdef Results results = self.results
        cdef unsigned long long epoch = results.epoch
        results.misses += 1
        try:
            value = self.begin()
        except results.options.errors as error:
            results.store_error(self.key, error, epoch)
            raise
        if PyCoro_CheckExact(value):
            check_result(value, self.function.function)
        results.store(self.key, value, epoch)
        return value


async def answer_later(Call call not None):
    """Return the kept result, or wait for the one run of the function for this key."""
    cdef Results results = call.results
    key = call.make_key()
    value = call.find(key)
    if value is not MISSING:
        results.hits += 1
        if is_kept(value):
            raise value.fresh()
        if not call.is_stale:
            return value
    loop = asyncio.get_running_loop()
    if results.flights is None:
        results.flights = Flights()
    flight = results.flights.find(loop, key)
    if flight is None:
        results.misses += 1
        name, errors = call.function.token.name, results.options.errors
        if call.is_stale:
            results.flights.refresh(loop, key, run_and_keep(call, key), name, errors)
            return value
        flight = results.flights.start(loop, key, run_and_keep(call, key), name, errors)
    elif call.is_stale:
        return value
    else:
        results.hits += 1
    return await flight.wait()


async def run_and_keep(Call call not None, key):
    """Run the coroutine function and keep its result."""
    call.check()
    cdef Results results = call.results
    cdef unsigned long long epoch = results.epoch
    try:
        value = await call.begin()
    except results.options.errors as error:
        results.store_error(key, error, epoch)
        raise
    results.store(key, value, epoch)
    return value


cdef object call_function(object called, PyObject** args, size_t nargsf, PyObject* kwnames):
    """Vectorcall of `CachedFunction`."""
    cdef CachedFunction self = <CachedFunction>called
    cdef Results results
    if self.owners is not None and PyVectorcall_NARGS(nargsf):
        for owner in self.owners:
            if is_instance(args[0], <PyObject*>owner):
                # The instance itself lies in the slot before the other arguments.
                results = self.results_of(args[0])
                return self.answer(
                    results, args[0], args + 1,
                    (PyVectorcall_NARGS(nargsf) - 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames)
    results = self.own
    if results is None:
        results = self.make_own()
    return self.answer(results, NULL, args, nargsf, kwnames)


cdef object call_method(object called, PyObject** args, size_t nargsf, PyObject* kwnames):
    """Vectorcall of `CachedMethod`."""
    cdef CachedMethod self = <CachedMethod>called
    cdef PyObject* instance = <PyObject*>self.instance
    cdef CachedFunction function = self.function
    return function.answer(function.results_of(instance), instance, args, nargsf, kwnames)


def cached(maxsize=..., ttl=..., *, key=None, typed=False, cache=None, timer=None,
           single_flight=False, stale=None, refresh=None, cache_errors=None, error_ttl=...):
    """Keep the results of a function, a method or a coroutine function.

    Use it bare (`@cached`: 128 results, no time to live) or with options. The decorated function
    has `cache_info()`, `cache_clear()`, `cache` (the `Cache` used) and `__wrapped__`. Exceptions
    are not kept unless `cache_errors` says so; a result of None is. A hit is O(1).

    maxsize: the most results held, 128 unless given; the least useful ones are evicted.
    ttl: seconds that a result is kept (float); None, the default, never expires.
    key: called with the arguments of the call (the instance first for a method), returns the
        hashable key, used as is; `function.cache.pop(key, None)` then forgets one result.
    typed: whether arguments of different types are kept apart even if equal. Without it, equal
        arguments may share a result, as in `functools.lru_cache`; keyword arguments in another
        order are another call.
    cache: a `Cache` to keep the results in, together with what else it holds; excludes maxsize,
        ttl and timer. Functions on one cache never collide, unless `key` makes them. A value
        heavier than its max_weight is returned without being kept.
    timer: the clock of the time to live: returns seconds as a float.
    single_flight: whether threads that call a plain function with equal arguments at one time
        share one run: the others wait for it. They get its result, or a copy of its Exception
        with the original as `__cause__`; after KeyboardInterrupt and the like one of them runs
        the function instead. A call that would wait for itself, by recursion or for a thread
        that waits for this one, runs the function directly. A run that waits for a thread
        which it started outside its context and which makes the same call hangs.
    stale: seconds (float) after `ttl` for which a result is still served while one refresh runs;
        `cache.ttl` is then the sum, and with a given cache entries live that much longer. A
        coroutine function is refreshed in a task of the running loop. Of a plain function, the
        caller that first meets the stale result refreshes it and gets the fresh one, unless
        `refresh` is given. A refresh that fails leaves the stale result; its error goes to the
        loop's exception handler or to `sys.unraisablehook`, and the next call tries again.
    refresh: called as `refresh(job)` to have a refresh of a plain function made elsewhere, as
        `executor.submit` does; `job` takes no arguments and may be dropped.
    cache_errors: a subclass of Exception, or a tuple of them, that are kept as results are. Each
        call raises a copy of its own, with no traceback, cause and context; what has no copy is
        not kept. In the cache such an error is a `KeptError`. Not with a cache that has a
        weigher.
    error_ttl: seconds that an error is kept; as for results (`ttl`) unless given. Never stale.

    Methods: each instance has results of its own (at most maxsize each), is held weakly and by
    identity, and its results go when it dies. As in a WeakKeyDictionary, a result that itself
    refers to the instance keeps it alive until the result goes. An instance without weak
    references raises TypeError. In a given cache, the results of a dead instance stay until they
    are evicted or expire, and do not keep the instance alive. Write @classmethod and
    @staticmethod above @cached; results of a classmethod are told apart by class and hold the
    class until they are evicted.
    A property above @cached holds the instance: prefer `functools.cached_property`.

    Coroutine functions: concurrent awaits of one key on one event loop share one run, a task of
    its own with the first caller's context. Cancelling a caller cancels nobody else; when all
    are cancelled the run still goes on and its result is kept (its error goes to the loop's
    exception handler). An error is raised in every waiting caller and not kept. A call that would
    wait for itself raises RuntimeError. A hit does not switch tasks. Plain functions run once
    per concurrent caller, as in functools, unless `single_flight` is true.

    Hits count calls that were answered by a kept result, stale or not, or by the run of another
    call; misses count runs of the function, refreshes included.

    Raises ValueError or TypeError for bad options, and TypeError for what cannot be decorated:
    no callable, a classmethod, a staticmethod, a generator function.
    """
    function = None
    if is_function_like(maxsize):
        function, maxsize = maxsize, ...
    options = check_options(maxsize, ttl, key, typed, cache, timer, single_flight, stale, refresh,
                            cache_errors, error_ttl)

    def decorate(function, /):
        """Return `function` with its results kept."""
        return CachedFunction(function, options)

    return decorate if function is None else decorate(function)


def _unbound():
    """Stand for the function of a method that was never bound."""
    raise TypeError("this method was never bound to a function")


cdef CachedFunction NOBODY = CachedFunction(_unbound, check_options())


cdef int patch_types() except -1:
    """Tell the interpreter where the vectorcall functions lie in the objects."""
    cdef CachedFunction function = NOBODY
    cdef CachedMethod method = CachedMethod.__new__(CachedMethod)
    enable_vectorcall(<PyObject*>CachedFunction,
                      <char*>&function.vectorcall - <char*><void*>function)
    enable_vectorcall(<PyObject*>CachedMethod, <char*>&method.vectorcall - <char*><void*>method)
    return 0


patch_types()
