"""libbpf for Python: load an eBPF object, attach its XDP program, fill its maps, run it on test frames.

Every failure is a DeviceError that names the errno and what to do. File descriptors close with their objects.
"""

import errno
import os

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from glb._libbpf cimport (
    BPF_F_MMAPABLE, BPF_F_TEST_XDP_LIVE_FRAMES, BPF_MAP_TYPE_ARRAY, BPF_XDP, XDP_ATTACHED_DRV, XDP_ATTACHED_HW,
    XDP_ATTACHED_MULTI, XDP_ATTACHED_SKB, XDP_FLAGS_SKB_MODE, bpf_link_create, bpf_link_create_opts, bpf_link_info,
    bpf_link_update, bpf_map, bpf_map__fd, bpf_map__name, bpf_map__reuse_fd, bpf_map__set_initial_value, bpf_map_create,
    bpf_map_create_opts, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem, bpf_obj_get,
    bpf_obj_get_info_by_fd, bpf_obj_pin, bpf_object, bpf_object__close, bpf_object__find_map_by_name,
    bpf_object__find_program_by_name, bpf_object__load, bpf_object__next, bpf_object__next_map, bpf_object__open_file,
    bpf_prog_get_fd_by_id, bpf_prog_info, bpf_prog_test_run_opts, bpf_program, bpf_program__fd, bpf_test_run_opts,
    bpf_xdp_query, bpf_xdp_query_opts, libbpf_num_possible_cpus, xdp_link_info,
)

from glb.errors import DeviceError


cdef extern from *:
    """
    #include <stdarg.h>
    #include <stdio.h>
    #include <errno.h>
    /* libbpf's warnings of this thread's last call; shown in the error it leads to, never on the terminal by themselves. */
    static _Thread_local char glb_libbpf_log[8192];
    static _Thread_local size_t glb_libbpf_used;
    static int glb_keep_log(enum libbpf_print_level level, const char *format, va_list args)
    {
        if (level != LIBBPF_WARN || glb_libbpf_used + 1 >= sizeof glb_libbpf_log)
            return 0;
        int n = vsnprintf(glb_libbpf_log + glb_libbpf_used, sizeof glb_libbpf_log - glb_libbpf_used, format, args);
        if (n > 0)
            glb_libbpf_used += n;
        if (glb_libbpf_used >= sizeof glb_libbpf_log)
            glb_libbpf_used = sizeof glb_libbpf_log - 1;
        return 0;
    }
    static void glb_start_log(void)
    {
        glb_libbpf_used = 0;
        glb_libbpf_log[0] = 0;
        libbpf_set_print(glb_keep_log);
    }
    #include <sys/vfs.h>
    static int glb_is_bpffs(const char *path)
    {
        struct statfs fs;
        return statfs(path, &fs) == 0 && fs.f_type == 0xcafe4a11;
    }
    """
    int glb_is_bpffs(const char* path) nogil
    char* glb_libbpf_log
    void glb_start_log() nogil


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_NONE
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_SHARED
        MAP_FIXED
        MAP_ANONYMOUS
        MAP_NORESERVE
    void* MAP_FAILED
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)


cdef extern from "<unistd.h>" nogil:
    int close(int fd)


MODES = {XDP_ATTACHED_DRV: "native", XDP_ATTACHED_SKB: "generic", XDP_ATTACHED_HW: "offload"}
LIVE_FRAMES = BPF_F_TEST_XDP_LIVE_FRAMES

_ADVICE = {
    errno.EPERM: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno.EACCES: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno.EBUSY: "another XDP program is attached",
    errno.ENOMEM: "raise the memory limit (ulimit -l) of this process",
}


def _failed(what, int code):
    """DeviceError for a negative errno as libbpf returns it."""
    number = -code if code < 0 else errno.EIO
    log = glb_libbpf_log.decode(errors="replace").strip()
    advice = _ADVICE.get(number)
    text = f"{what}: {errno.errorcode.get(number, number)} ({os.strerror(number)})"
    if advice:
        text += f"; {advice}"
    if log:
        text += "\n" + "\n".join(log.splitlines()[max(0, len(log.splitlines()) - 12):])
    return DeviceError(text)


cdef class BpfObject:
    """An eBPF object file, loaded: its programs and maps by name. Raises DeviceError."""

    cdef bpf_object* object
    cdef str path

    def __init__(self, path, bytes constants=None, reuse=()):
        """`constants`: the program's read-only variables, as the bytes of their section. `reuse`: {map name: file descriptor}
        of maps that are there already."""
        cdef bpf_map* map = NULL
        cdef bpf_object* opened
        self.path = os.fspath(path)
        glb_start_log()
        encoded = self.path.encode()
        self.object = bpf_object__open_file(encoded, NULL)
        if self.object == NULL:
            raise DeviceError(f"cannot read the eBPF object {self.path}; is the package built? (make setup)")
        cdef int result = 0
        if constants is not None:
            map = bpf_object__next_map(self.object, NULL)
            while map != NULL and not (<bytes>bpf_map__name(map)).endswith(b".rodata"):
                map = bpf_object__next_map(self.object, map)
            if map == NULL:
                raise DeviceError(f"{self.path} has no constants to set")
            result = bpf_map__set_initial_value(map, <const char*>constants, len(constants))
            if result < 0:
                raise _failed(f"setting the constants of {self.path}", result)
        for name, fd in dict(reuse).items():
            map = bpf_object__find_map_by_name(self.object, name.encode())
            result = bpf_map__reuse_fd(map, fd) if map != NULL else -errno.ENOENT
            if result < 0:
                raise _failed(f"giving {self.path} the map {name}", result)
        opened = self.object
        with nogil:  # the verifier takes up to 0.3 s
            result = bpf_object__load(opened)
        if result < 0:
            bpf_object__close(self.object)
            self.object = NULL
            raise _failed(f"the kernel refused the eBPF object {self.path}", result)

    def program(self, str name):
        """File descriptor of a program; it belongs to this object."""
        cdef bpf_program* program = bpf_object__find_program_by_name(self.object, name.encode())
        if program == NULL:
            raise DeviceError(f"{self.path} has no program {name}")
        return bpf_program__fd(program)

    def map(self, str name):
        """File descriptor of a map; it belongs to this object."""
        cdef bpf_map* found = bpf_object__find_map_by_name(self.object, name.encode())
        if found == NULL:
            raise DeviceError(f"{self.path} has no map {name}")
        return bpf_map__fd(found)

    def close(self):
        if self.object != NULL:
            bpf_object__close(self.object)
            self.object = NULL

    def __dealloc__(self):
        if self.object != NULL:
            bpf_object__close(self.object)


def attach_xdp(int program_fd, int ifindex, *, bint generic=False):
    """Attach an XDP program by a link: the returned file descriptor, which detaches when closed. Raises DeviceError."""
    cdef bpf_link_create_opts opts
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.flags = XDP_FLAGS_SKB_MODE if generic else 0
    glb_start_log()
    cdef int fd = bpf_link_create(program_fd, ifindex, BPF_XDP, &opts)
    if fd < 0:
        raise _failed(f"attaching the XDP program to interface {ifindex}", fd)
    return fd


def attached_xdp(int ifindex):
    """(program id or 0, mode) of what is attached: mode is native, generic, offload, multi or none."""
    cdef bpf_xdp_query_opts opts
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    cdef int result = bpf_xdp_query(ifindex, 0, &opts)
    if result < 0:
        raise _failed(f"asking for the XDP program of interface {ifindex}", result)
    return opts.prog_id, MODES.get(opts.attach_mode, "multi" if opts.attach_mode == XDP_ATTACHED_MULTI else "none")


def program_name(uint32_t program_id):
    """Of a loaded program, its first 15 characters; "" if it has none, or is gone."""
    cdef bpf_prog_info info
    cdef uint32_t length = sizeof(info)
    cdef int fd = bpf_prog_get_fd_by_id(program_id)
    memset(&info, 0, sizeof(info))
    if fd >= 0:
        bpf_obj_get_info_by_fd(fd, &info, &length)
        close(fd)
    return (<bytes>info.name).decode()


def pin(int fd, path):
    """Keep a link or a map alive beyond this process, under a name in a bpffs."""
    cdef bytes encoded = os.fsencode(path)
    cdef int result = bpf_obj_pin(fd, encoded)
    if result < 0:
        raise _failed(f"pinning {os.fspath(path)}", result)


def open_pinned(path):
    """File descriptor of what is pinned under a name, or None: there is nothing."""
    cdef bytes encoded = os.fsencode(path)
    cdef int fd = bpf_obj_get(encoded)
    if fd == -errno.ENOENT:
        return None
    if fd < 0:
        raise _failed(f"opening {os.fspath(path)}", fd)
    return fd


def replace_program(int link_fd, int program_fd):
    """Put another program in a link's place; no frame passes without one of the two."""
    glb_start_log()
    cdef int result = bpf_link_update(link_fd, program_fd, NULL)
    if result < 0:
        raise _failed("replacing the XDP program", result)


def link_ifindex(int link_fd):
    """Interface that an XDP link is attached to; 0: to none any more."""
    cdef bpf_link_info info
    cdef uint32_t length = sizeof(info)
    memset(&info, 0, sizeof(info))
    cdef int result = bpf_obj_get_info_by_fd(link_fd, &info, &length)
    if result < 0:
        raise _failed("asking for a link's interface", result)
    return info.xdp.ifindex


def is_bpffs(path):
    """Whether a folder lies in a BPF file system."""
    cdef bytes encoded = os.fsencode(path)
    return bool(glb_is_bpffs(encoded))


def read_counts(int fd, uint32_t first, uint32_t n):
    """[(packets, bytes)] of `n` entries of a per-CPU array of struct glb_count, summed over the CPUs."""
    cdef int cpus = libbpf_num_possible_cpus()
    values = memoryview(bytearray(16 * cpus)).cast("Q")
    cdef uint64_t[::1] view = values
    cdef uint32_t i
    cdef int cpu
    cdef uint64_t packets, n_bytes
    result = []
    for i in range(first, first + n):
        packets = n_bytes = 0
        if bpf_map_lookup_elem(fd, &i, &view[0]) == 0:
            for cpu in range(cpus):
                packets += view[2 * cpu]
                n_bytes += view[2 * cpu + 1]
        result.append((packets, n_bytes))
    return result


def create_array(str name, uint32_t value_bytes, uint32_t entries=1):
    """A new BPF array map with 4-byte keys: its file descriptor, which the caller closes."""
    cdef int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, name.encode(), 4, value_bytes, entries, NULL)
    if fd < 0:
        raise _failed(f"creating the map {name}", fd)
    return fd


cdef class SharedArrays:
    """BPF arrays of one entry each, their values one after the other in this process's memory. Raises DeviceError.

    What is written at `address` is what programs read, at once. `fds` are the maps, in order; they close with this object.
    `value_bytes` is a multiple of the page size if there is more than one.
    """

    cdef readonly size_t address
    cdef readonly size_t n_bytes
    cdef readonly list fds

    def __init__(self, str name, size_t value_bytes, int n_maps=1):
        cdef bpf_map_create_opts opts
        cdef size_t page = os.sysconf("SC_PAGESIZE")
        cdef size_t spacing = (value_bytes + page - 1) // page * page
        cdef void* area
        cdef int fd, i
        self.fds = []
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.map_flags = BPF_F_MMAPABLE
        # Room for all of them first, so that they lie side by side.
        area = mmap(NULL, spacing * n_maps, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if area == MAP_FAILED:
            raise MemoryError
        self.address = <size_t>area
        self.n_bytes = spacing * n_maps
        for i in range(n_maps):
            fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, name.encode(), 4, value_bytes, 1, &opts)
            if fd < 0:
                raise _failed(f"creating the map {name}", fd)
            self.fds.append(fd)
            if mmap(<void*>(self.address + i * spacing), spacing, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                    0) == MAP_FAILED:
                raise _failed(f"mapping {name} into memory", -errno.ENOMEM)

    def __dealloc__(self):
        if self.address:
            munmap(<void*>self.address, self.n_bytes)
        for fd in self.fds or ():
            close(fd)  # not os.close: that module may be gone when the interpreter ends


def update_map(int fd, bytes key not None, bytes value not None):
    """Set one entry. `key` and `value` must have the map's sizes."""
    cdef const char* k = key
    cdef const char* v = value
    cdef int result = bpf_map_update_elem(fd, k, v, 0)
    if result < 0:
        raise _failed("updating a map", result)


def delete_from_map(int fd, bytes key not None):
    """Remove one entry; there being none is fine. `key` must have the map's size."""
    cdef const char* k = key
    cdef int result = bpf_map_delete_elem(fd, k)
    if result < 0 and result != -errno.ENOENT:
        raise _failed("removing an entry of a map", result)


def lookup_map(int fd, bytes key not None, size_t value_bytes):
    """One entry as bytes, or None. `value_bytes` must be the map's value size (per-CPU maps: of all CPUs together)."""
    cdef const char* k = key
    value = bytearray(value_bytes)
    cdef char* v = value
    return bytes(value) if bpf_map_lookup_elem(fd, k, v) == 0 else None


def sum_per_cpu(int fd, uint32_t index):
    """Sum over all CPUs of one u64 entry of a per-CPU array."""
    cdef int cpus = libbpf_num_possible_cpus()
    value = lookup_map(fd, index.to_bytes(4, "little"), 8 * cpus)
    return sum(memoryview(value).cast("Q")) if value is not None else 0


def test_run(int program_fd, bytes frame not None, *, uint32_t repeat=1, uint32_t flags=0, uint32_t batch=0):
    """Run an XDP program on a frame: (XDP action, frame after it, ns a run). Raises DeviceError."""
    cdef bpf_test_run_opts opts
    cdef const char* data_in = frame
    out = bytearray(len(frame) + 512)
    cdef char* data_out = out
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.data_in = data_in
    opts.data_size_in = len(frame)
    if not flags & BPF_F_TEST_XDP_LIVE_FRAMES:  # live frames go out, nothing comes back
        opts.data_out = data_out
        opts.data_size_out = len(out)
    opts.repeat = repeat
    opts.flags = flags
    opts.batch_size = batch
    cdef int result
    with nogil:
        result = bpf_prog_test_run_opts(program_fd, &opts)
    if result < 0:
        raise _failed("BPF_PROG_TEST_RUN", result)
    return opts.retval, bytes(out[:opts.data_size_out]) if data_out != NULL else b"", opts.duration
