"""What of libbpf and of the kernel's headers for it is used here."""

from libc.stdint cimport uint32_t, uint64_t


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
    bpf_map* bpf_object__next_map(const bpf_object* object, const bpf_map* map)
    const char* bpf_map__name(const bpf_map* map)
    int bpf_map__set_initial_value(bpf_map* map, const void* data, size_t size)
    int bpf_map__fd(const bpf_map* map)
    int bpf_map__reuse_fd(bpf_map* map, int fd)
    int bpf_xdp_query(int ifindex, int flags, bpf_xdp_query_opts* opts)
    int libbpf_num_possible_cpus()


cdef extern from "bpf/bpf.h" nogil:
    struct bpf_map_create_opts:
        size_t sz
        uint32_t map_flags
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
    int bpf_map_delete_elem(int fd, const void* key)
    int bpf_link_create(int program_fd, int target_fd, int attach_type, const bpf_link_create_opts* opts)
    int bpf_prog_test_run_opts(int program_fd, bpf_test_run_opts* opts)
    int bpf_obj_pin(int fd, const char* path)
    int bpf_obj_get(const char* path)
    int bpf_link_update(int link_fd, int new_program_fd, const void* opts)
    int bpf_obj_get_info_by_fd(int fd, void* info, uint32_t* length)
    int bpf_prog_get_fd_by_id(uint32_t id)


cdef extern from "linux/bpf.h" nogil:
    enum:
        BPF_MAP_TYPE_ARRAY
        BPF_XDP
        BPF_F_TEST_XDP_LIVE_FRAMES
        BPF_F_MMAPABLE
    struct bpf_prog_info:
        char name[16]
    struct xdp_link_info:
        uint32_t ifindex
    struct bpf_link_info:
        uint32_t type
        uint32_t id
        uint32_t prog_id
        xdp_link_info xdp


cdef extern from "linux/if_link.h" nogil:
    enum:
        XDP_FLAGS_SKB_MODE
        XDP_ATTACHED_DRV
        XDP_ATTACHED_SKB
        XDP_ATTACHED_HW
        XDP_ATTACHED_MULTI
