// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The first and only program of a kernel under test: loads our eBPF programs, each with every set of options that makes another
 * program of it, and prints what the verifier made of them, one line each. Ends the machine if it is its first process.
 *
 * load DIRECTORY; without arguments the objects are in /.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "glb_layout.h"
#include "glb_verdicts.h"

static const struct {
    const char *name;
    struct glb_options options;
} variants[] = {
    {"hand over", {.accelerate = 0}},
    {"source address", {.accelerate = 1, .hash_fields = 1, .ifindex = 1}},
    {"four fields", {.accelerate = 1, .hash_fields = 15, .ifindex = 1}},
    {"alternative row", {.accelerate = 1, .hash_fields = 1, .alt_hash_fields = 2, .ifindex = 1}},
    {"four fields, veth", {.accelerate = 1, .hash_fields = 15}},
    {"all fields, both", {.accelerate = 1, .hash_fields = 15, .alt_hash_fields = 15, .ifindex = 1}},
};

static const struct {
    const char *name;
    struct glb_agent_options options;
} agent_variants[] = {
    {"host sends", {.gue_port = 0x434c, .ifindex = 0}},
    {"sends itself", {.gue_port = 0x434c, .ifindex = 1}},
    {"redirects", {.gue_port = 0x434c, .ifindex = 1, .by_redirect = 1}},
};

static const char *const directors[] = {"director", "capture"};

static char log_text[1 << 16];
static size_t log_used;

static int keep_log(enum libbpf_print_level level, const char *format, va_list args)
{
    if (level != LIBBPF_WARN || log_used + 1 >= sizeof log_text)
        return 0;
    int n = vsnprintf(log_text + log_used, sizeof log_text - log_used, format, args);
    if (n > 0)
        log_used += n;
    if (log_used >= sizeof log_text)
        log_used = sizeof log_text - 1;
    return 0;
}

/* The constants of the program, as glb/_bpf.pyx sets them. */
static int set_options(struct bpf_object *object, const void *options, size_t size)
{
    struct bpf_map *map;

    if (!options)
        return 0;

    bpf_object__for_each_map(map, object) {
        const char *name = bpf_map__name(map);
        size_t length = strlen(name);

        if (length > 7 && !strcmp(name + length - 7, ".rodata"))
            return bpf_map__set_initial_value(map, options, size);
    }
    return -1;
}

/* The program of <directory>/<what>.bpf.o. */
static int load(const char *directory, const char *release, const char *what, const char *name, const void *options, size_t size)
{
    struct bpf_object *object;
    struct bpf_prog_info info = {};
    __u32 length = sizeof info;
    struct bpf_program *program;
    char path[4096];

    snprintf(path, sizeof path, "%s/%s.bpf.o", directory, what);
    object = bpf_object__open_file(path, NULL);
    if (!object || set_options(object, options, size) || bpf_object__load(object)) {
        printf("REFUSED %s: %s, %s\n%s\n", release, what, name, log_text);
        log_used = 0;
        return 1;
    }
    program = bpf_object__next_program(object, NULL); /* the only one */
    bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &length);
    printf("LOADED %-28s %-13s %-18s %6u instructions verified, %5u in the program, %6u bytes of machine code\n", release, what, name,
           info.verified_insns, info.xlated_prog_len / 8, info.jited_prog_len);
    bpf_object__close(object);
    return 0;
}

int main(int n, char **arguments)
{
    const char *directory = n > 1 ? arguments[1] : "";
    int refused = 0;
    struct utsname system;

    if (getpid() == 1)
        mount("sys", "/sys", "sysfs", 0, NULL);
    libbpf_set_print(keep_log);
    uname(&system);
    for (size_t object = 0; object < sizeof directors / sizeof *directors; object++)
        for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
            refused += load(directory, system.release, directors[object], variants[i].name, &variants[i].options,
                            sizeof variants[i].options);
    for (size_t i = 0; i < sizeof agent_variants / sizeof *agent_variants; i++)
        refused += load(directory, system.release, "second_chance", agent_variants[i].name, &agent_variants[i].options,
                        sizeof agent_variants[i].options);
    refused += load(directory, system.release, "syncookie", "", NULL, 0);
    refused += load(directory, system.release, "flows", "", NULL, 0);
    printf("DONE %d refused\n", refused);
    fflush(stdout);
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    return refused != 0;
}
