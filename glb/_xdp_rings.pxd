"""AF_XDP sockets and their rings, as libxdp's <xdp/xsk.h> declares them."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "xdp/xsk.h" nogil:
    struct xsk_ring_prod:
        pass
    struct xsk_ring_cons:
        pass
    struct xsk_umem
    struct xsk_socket
    struct xsk_umem_config:
        uint32_t fill_size
        uint32_t comp_size
        uint32_t frame_size
        uint32_t frame_headroom
        uint32_t flags
    struct xsk_socket_config:
        uint32_t rx_size
        uint32_t tx_size
        uint32_t libxdp_flags
        uint32_t xdp_flags
        unsigned short bind_flags
    struct xdp_desc:
        uint64_t addr
        uint32_t len
        uint32_t options
    enum:
        XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD
        XDP_USE_NEED_WAKEUP
        XDP_STATISTICS
        XDP_OPTIONS
        XDP_OPTIONS_ZEROCOPY
    struct xdp_statistics:
        uint64_t rx_dropped
        uint64_t rx_invalid_descs
        uint64_t tx_invalid_descs
        uint64_t rx_ring_full
        uint64_t rx_fill_ring_empty_descs
        uint64_t tx_ring_empty_descs
    struct xdp_options:
        uint32_t flags
    int xsk_umem__create(xsk_umem** umem, void* area, uint64_t size, xsk_ring_prod* fill, xsk_ring_cons* completion,
                         const xsk_umem_config* config)
    int xsk_umem__delete(xsk_umem* umem)
    int xsk_socket__create(xsk_socket** socket, const char* interface, uint32_t queue, xsk_umem* umem,
                           xsk_ring_cons* rx, xsk_ring_prod* tx, const xsk_socket_config* config)
    void xsk_socket__delete(xsk_socket* socket)
    int xsk_socket__fd(const xsk_socket* socket)
    int xsk_socket__update_xskmap(xsk_socket* socket, int map_fd)
    uint32_t xsk_ring_prod__reserve(xsk_ring_prod* ring, uint32_t n, uint32_t* index)
    void xsk_ring_prod__submit(xsk_ring_prod* ring, uint32_t n)
    uint32_t xsk_prod_nb_free(xsk_ring_prod* ring, uint32_t n)
    int xsk_ring_prod__needs_wakeup(const xsk_ring_prod* ring)
    uint64_t* xsk_ring_prod__fill_addr(xsk_ring_prod* ring, uint32_t index)
    xdp_desc* xsk_ring_prod__tx_desc(xsk_ring_prod* ring, uint32_t index)
    uint32_t xsk_ring_cons__peek(xsk_ring_cons* ring, uint32_t n, uint32_t* index)
    void xsk_ring_cons__release(xsk_ring_cons* ring, uint32_t n)
    const xdp_desc* xsk_ring_cons__rx_desc(const xsk_ring_cons* ring, uint32_t index)
    const uint64_t* xsk_ring_cons__comp_addr(const xsk_ring_cons* ring, uint32_t index)
