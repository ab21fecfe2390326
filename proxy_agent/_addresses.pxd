"""Configured networks into the sorted ranges that the packet path and the count of flows look them up in."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from proxy_agent._tunnel cimport AddressSet, Range4, Range6


cdef inline int fill_set(AddressSet* addresses, networks) except -1:
    """Ranges of `networks` (ipaddress networks that do not overlap); `entry` is the position in the list given."""
    v4 = sorted([(int(n.network_address), int(n.broadcast_address), i) for i, n in enumerate(networks) if n.version == 4])
    v6 = sorted([(int(n.network_address), int(n.broadcast_address), i) for i, n in enumerate(networks) if n.version == 6])
    cdef size_t k
    cdef uint64_t low64 = <uint64_t>0xffffffffffffffff
    addresses.v4 = <Range4*>calloc(len(v4) + 1, sizeof(Range4))
    addresses.v6 = <Range6*>calloc(len(v6) + 1, sizeof(Range6))
    if addresses.v4 == NULL or addresses.v6 == NULL:
        raise MemoryError()
    for k, (first, last, entry) in enumerate(v4):
        addresses.v4[k].first = first
        addresses.v4[k].last = last
        addresses.v4[k].entry = entry
    for k, (first, last, entry) in enumerate(v6):
        addresses.v6[k].first_high = first >> 64
        addresses.v6[k].first_low = first & low64
        addresses.v6[k].last_high = last >> 64
        addresses.v6[k].last_low = last & low64
        addresses.v6[k].entry = entry
    addresses.n_v4 = len(v4)
    addresses.n_v6 = len(v6)
    return 0


cdef inline void free_set(AddressSet* addresses) noexcept:
    free(addresses.v4)
    free(addresses.v6)
