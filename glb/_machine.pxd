"""What only the compiler or the C library can do: fetch memory ahead, share it with other threads, read a thread's clock."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from *:
    """
    #include <time.h>
    #define glb_prefetch(p) __builtin_prefetch(p)
    #define glb_prefetch_write(p) __builtin_prefetch(p, 1)
    #define glb_acquire_u64(at) __atomic_load_n(at, __ATOMIC_ACQUIRE)
    #define glb_release_u64(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
    #define glb_release_u32(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
    static inline unsigned long long glb_thread_ns(void)
    {
        struct timespec now;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        return now.tv_sec * 1000000000ULL + now.tv_nsec;
    }
    """
    void glb_prefetch(const void* p) nogil
    void glb_prefetch_write(const void* p) nogil
    uint64_t glb_acquire_u64(const uint64_t* at) nogil
    void glb_release_u64(uint64_t* at, uint64_t value) nogil
    void glb_release_u32(uint32_t* at, uint32_t value) nogil
    uint64_t glb_thread_ns() nogil
    bint likely(bint condition) nogil
    bint unlikely(bint condition) nogil
