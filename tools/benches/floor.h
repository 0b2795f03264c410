/* Shared by the files of the floor: what one start is made of, and how a failing call is reported. */
#ifndef FLOOR_H
#define FLOOR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { ID_BASE = 0x40000000, ID_RANGE = 65536 };

/* What is the same for every start; filled from the command line. */
struct floor_config {
    const char *state;        /* directory for the agents' upper and work directories */
    const char *lower;        /* unpacked image */
    const char *nft_table;    /* inet table that holds the sets of floor_net.c */
    int cgroup;               /* dir fd of the tier group */
    int init;                 /* O_RDONLY fd of the static init */
    const void *filter;       /* struct sock_filter[] */
    unsigned short filter_len;
    int host_netns, empty_mntns;
};

/* One start in flight. */
struct floor_start {
    unsigned slot;            /* unique among the starts in flight: addresses, ids and names derive from it */
    int rootfs, userns, netns, cgroup_leaf, in, out, err, read_out, read_err;
    pid_t pid;
    int pidfd;
    char agent_dir[256];
};

static inline unsigned id_base(const struct floor_start *start) { return ID_BASE + start->slot * ID_RANGE; }

_Noreturn void die(const char *call, const char *what);
int check(long result, const char *call, const char *what);
void write_at(int dir, const char *path, const char *text);

/* floor_rootfs.c: private files, overlay, output pipes. */
void rootfs_create(const struct floor_config *config, struct floor_start *start);
void rootfs_destroy(const struct floor_start *start);

/* floor_net.c: netns, veth pair with addresses, routes and permanent neighbours; nft elements. */
void net_open(const struct floor_config *config);
void net_create(const struct floor_config *config, struct floor_start *start);
void net_destroy(const struct floor_config *config, const struct floor_start *start);

/* floor_child.c: the clone and everything up to exec; returns when init has been executed. */
void child_start(const struct floor_config *config, struct floor_start *start);

/* floor_ns.c */
int userns_make(unsigned base);
int empty_mntns_make(void);

#endif
