"""What only the compiler or the C library can do: fetch memory ahead, read a thread's clock."""

from libc.stdint cimport uint64_t


cdef extern from *:
    """
    #include <time.h>
    #define glb_prefetch(p) __builtin_prefetch(p)
    #define glb_prefetch_write(p) __builtin_prefetch(p, 1)
    static inline unsigned long long glb_thread_ns(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        return now.tv_sec * 1000000000ULL + now.tv_nsec;
    }
    """
    void glb_prefetch(const void* p) nogil
    void glb_prefetch_write(const void* p) nogil
    uint64_t glb_thread_ns() nogil
    bint unlikely(bint condition) nogil
