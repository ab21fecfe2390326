// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The director's program once more, with packets copied to user space. It is put in the plain one's place while a capture runs,
 * on the same maps; so the plain one has not a single instruction for it (ARCHITECTURE.md).
 */
#define GLB_CAPTURE
#define glb_director glb_capturing /* the program's name, so that `bpftool net` tells which of the two is in force */
#include "director.bpf.c"
