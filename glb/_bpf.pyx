"""libbpf for Python: load an eBPF object, attach its XDP program, fill its maps, run it on test frames.

Every failure is a DeviceError that names the errno and what to do. File descriptors close with their objects.
"""

import errno
import os

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from glb.errors import DeviceError


cdef extern from "bpf/libbpf.h" nogil:
    struct bpf_object
    struct bpf_program
    struct bpf_map
    struct bpf_xdp_query_opts:
        size_t sz
        uint32_t prog_id
        unsigned char attach_mode
    bpf_object* bpf_object__open_file(const char* path, const void* opts)
    bpf_object* bpf_object__next(bpf_object* previous)
    int bpf_object__load(bpf_object* object)
    void bpf_object__close(bpf_object* object)
    bpf_program* bpf_object__find_program_by_name(const bpf_object* object, const char* name)
    bpf_map* bpf_object__find_map_by_name(const bpf_object* object, const char* name)
    int bpf_program__fd(const bpf_program* program)
    int bpf_map__fd(const bpf_map* map)
    int bpf_xdp_query(int ifindex, int flags, bpf_xdp_query_opts* opts)
    int libbpf_num_possible_cpus()


cdef extern from "bpf/bpf.h" nogil:
    struct bpf_map_create_opts:
        size_t sz
    struct bpf_link_create_opts:
        size_t sz
        uint32_t flags
    struct bpf_test_run_opts:
        size_t sz
        const void* data_in
        void* data_out
        uint32_t data_size_in
        uint32_t data_size_out
        int repeat
        uint32_t retval
        uint32_t duration
        uint32_t flags
        uint32_t batch_size
        const void* ctx_in
        uint32_t ctx_size_in
    int bpf_map_create(int type, const char* name, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
                       const bpf_map_create_opts* opts)
    int bpf_map_update_elem(int fd, const void* key, const void* value, uint64_t flags)
    int bpf_map_lookup_elem(int fd, const void* key, void* value)
    int bpf_link_create(int program_fd, int target_fd, int attach_type, const bpf_link_create_opts* opts)
    int bpf_prog_test_run_opts(int program_fd, bpf_test_run_opts* opts)


cdef extern from "linux/bpf.h" nogil:
    enum:
        BPF_MAP_TYPE_ARRAY
        BPF_XDP
        BPF_F_TEST_XDP_LIVE_FRAMES


cdef extern from "linux/if_link.h" nogil:
    enum:
        XDP_FLAGS_SKB_MODE
        XDP_ATTACHED_DRV
        XDP_ATTACHED_SKB
        XDP_ATTACHED_HW
        XDP_ATTACHED_MULTI


cdef extern from *:
    """
    #include <stdarg.h>
    #include <stdio.h>
    #include <errno.h>
    /* libbpf's warnings of the last call; shown in the error it leads to, never on the terminal by themselves. */
    static char glb_libbpf_log[8192];
    static size_t glb_libbpf_used;
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
    """
    char* glb_libbpf_log
    void glb_start_log() nogil


MODES = {XDP_ATTACHED_DRV: "native", XDP_ATTACHED_SKB: "generic", XDP_ATTACHED_HW: "offload"}
LIVE_FRAMES = BPF_F_TEST_XDP_LIVE_FRAMES

_ADVICE = {
    errno.EPERM: "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
    errno.EBUSY: "another XDP program is attached; `ip link show` names it, `ip link set dev IF xdp off` removes it",
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

    def __init__(self, path):
        self.path = os.fspath(path)
        glb_start_log()
        encoded = self.path.encode()
        self.object = bpf_object__open_file(encoded, NULL)
        if self.object == NULL:
            raise DeviceError(f"cannot read the eBPF object {self.path}; is the package built? (make setup)")
        cdef int result = bpf_object__load(self.object)
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
    """Attach an XDP program by a link: the returned file descriptor; closing it detaches.

    Native mode where the driver has XDP, else generic. Raises DeviceError.
    """
    cdef bpf_link_create_opts opts
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    opts.flags = XDP_FLAGS_SKB_MODE if generic else 0
    glb_start_log()
    cdef int fd = bpf_link_create(program_fd, ifindex, BPF_XDP, &opts)
    if fd == -errno.EBUSY:
        raise DeviceError(f"XDP program {attached_xdp(ifindex)[0]} is attached to interface {ifindex} already; "
                          f"`bpftool net` names its owner, `ip link set dev IF xdp off` removes it")
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


def create_array(str name, uint32_t value_bytes, uint32_t entries=1):
    """A new BPF array map with 4-byte keys: its file descriptor, which the caller closes."""
    cdef int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, name.encode(), 4, value_bytes, entries, NULL)
    if fd < 0:
        raise _failed(f"creating the map {name}", fd)
    return fd


def update_map(int fd, bytes key not None, bytes value not None):
    """Set one entry. `key` and `value` must have the map's sizes."""
    cdef const char* k = key
    cdef const char* v = value
    cdef int result = bpf_map_update_elem(fd, k, v, 0)
    if result < 0:
        raise _failed("updating a map", result)


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
