"""GLB: a stateless L4 load balancer. Two flows meet in a director; each arrow is one module.

A packet's way, through a director and a proxy:

    NIC ─▶ bpf/director.bpf.c ─▶ glb._xsk ─▶ glb._fastpath ─▶ glb._xsk ─▶ network
           │ classify (XDP);     │ AF_XDP    parse, classify,  │ AF_XDP
           │ common packets are  │ receive   hash, row,        │ send
           │ encapsulated here   ▼           encapsulate       ▼
           ▼ and sent            dropped, counted by reason    proxy: proxy_agent._verdict ─▶ its own TCP stack (accept)
           host's own stack                                           │                       dropped, counted by reason
                                                                      └─▶ the next hop's agent (bounce: second chance)

A configuration's way, from an operator's command to the packets:

    glb.ctl.verbs ─▶ glb.table.safety ─▶ glb.store.file ─▶ glb.director.watch ─▶ glb.director.daemon
    drain, fill      whose flows would    locked, replaced;  notices the change    reads again
                     it lose?             glb.store.history: what was in force
                                                              │
        ┌─────────────────────────────────────────────────────┘
        ▼
    glb.table.config ─▶ glb.table.rows ─▶ glb.table.binds ─▶ glb.director.forwarding ─▶ glb.director.datapath
    typed, or refused   proxies per row    what wins where     what the packet path reads  publishes it, all at once
    whole               (glb._rendezvous)                                                  (glb._xsk, glb._bpf)

Beside them:

    glb.director.nexthops   kernel routes and neighbours -> MAC address and MTU of each backend
    glb.pin                 the kernel's program outlives the daemon, and is taken over by the next
    glb.director.kept       so do its sockets and counters; glb.director.ledger: whose the counters are
    glb.director.announce   the device that exists while this director forwards; BGP follows it
    glb.director.metrics    counts -> Prometheus, served by glb.admin
    glb.director.replay     the same packet path over capture files
    glb.director.capture    packets of the running datapath (glb.director.tap, glb._capture) as a file (glb.wire.pcapng)
    glb.table.digest        what is forwarded by -> one hash to compare over the fleet
    glb.wire.gue            the tunnel packet for everything that is not the packet path
    glb.ctl.mtu             tunnel packets of the real size over every link -> which are too small
    proxy_agent.daemon      the proxy side: netfilter rules, VIPs, the verdict loop's life

What may import what: `glb` nothing but itself; `proxy_agent` the shared leaves of `glb`; `lab`, `tests`, `bench` and
`fuzz` both; nothing imports those. tests/repo/test_layout.py holds this, ARCHITECTURE.md says why.
"""

from glb.version import __version__

__all__ = ["__version__"]
