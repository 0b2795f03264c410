/* The root filesystem and the output pipes of one start: an overlay with a private upper over an idmapped, read-only image, with the
 * same options, files, owners and modes as images/rootfs.py and supervisor/stdio.py make.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* How the overlay is told its layers: by fd (Linux 6.15), or by paths while the image's clone is attached (older ones). */
static enum { UNKNOWN, BY_FD, ATTACHED } style;

static void private_file(int dir, const char *name, const char *text, unsigned owner)
{
    int fd = check(openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644), "open", name);
    check(write(fd, text, strlen(text)), "write", name);
    check(fchown(fd, owner, owner), "fchown", name);
    check(fchmod(fd, 0644), "fchmod", name);
    close(fd);
}

static int private_directory(int at, const char *name, unsigned owner)
{
    check(mkdirat(at, name, 0777), "mkdir", name);
    int fd = check(openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "open", name);
    check(fchown(fd, owner, owner), "fchown", name);
    check(fchmod(fd, 0755), "fchmod", name);
    return fd;
}

static void prepare(int agent, unsigned owner)
{
    check(mkdirat(agent, "work", 0700), "mkdir", "work");
    int upper = private_directory(agent, "upper.new", owner), etc = private_directory(upper, "etc", owner);
    private_file(etc, "hostname", "agent\n", owner);
    private_file(etc, "hosts", "127.0.0.1 localhost\n::1 localhost\n", owner);
    private_file(etc, "resolv.conf", "# no name server\n", owner);
    close(etc);
    close(upper);
    check(renameat(agent, "upper.new", agent, "upper"), "rename", "upper");
}

static void set_path(int context, const char *key, int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    check(fsconfig(context, FSCONFIG_SET_STRING, key, path, 0), "fsconfig", key);
}

static int overlay(int lower, int upper, int work)
{
    static const char *const options[][2] = {{"redirect_dir", "nofollow"}, {"metacopy", "off"}, {"index", "off"}};
    int context = check(fsopen("overlay", FSOPEN_CLOEXEC), "fsopen", "overlay");
    if (style != ATTACHED) {
        check(fsconfig(context, FSCONFIG_SET_FD, "lowerdir+", NULL, lower), "fsconfig", "lowerdir+");
        check(fsconfig(context, FSCONFIG_SET_FD, "upperdir", NULL, upper), "fsconfig", "upperdir");
        check(fsconfig(context, FSCONFIG_SET_FD, "workdir", NULL, work), "fsconfig", "workdir");
    } else {
        set_path(context, "lowerdir", lower);
        set_path(context, "upperdir", upper);
        set_path(context, "workdir", work);
    }
    check(fsconfig(context, FSCONFIG_SET_FLAG, "volatile", NULL, 0), "fsconfig", "volatile");
    check(fsconfig(context, FSCONFIG_SET_FLAG, "userxattr", NULL, 0), "fsconfig", "userxattr");
    for (size_t i = 0; i < 3; i++)
        check(fsconfig(context, FSCONFIG_SET_STRING, options[i][0], options[i][1], 0), "fsconfig", options[i][0]);
    check(fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig", "create overlay");
    int mounted = check(fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), "fsmount", "overlay");
    close(context);
    return mounted;
}

/* Whether fsconfig takes layers by fd here, found once. */
static void find_style(int lower)
{
    int context = check(fsopen("overlay", FSOPEN_CLOEXEC), "fsopen", "overlay");
    style = fsconfig(context, FSCONFIG_SET_FD, "lowerdir+", NULL, lower) == 0 ? BY_FD : ATTACHED;
    close(context);
}

static int idmapped_image(const struct floor_config *config, const struct floor_start *s)
{
    struct mount_attr map = {
        .attr_set = MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID, .userns_fd = (unsigned)s->userns};
    int lower = check(open_tree(AT_FDCWD, config->lower, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), "open_tree", config->lower);
    check(mount_setattr(lower, "", AT_EMPTY_PATH, &map, sizeof map), "mount_setattr", config->lower);
    return lower;
}

static void mount_root(const struct floor_config *config, struct floor_start *s, int agent)
{
    int upper = check(openat(agent, "upper", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "open", "upper");
    int work = check(openat(agent, "work", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "open", "work");
    int lower = idmapped_image(config, s);
    if (style == UNKNOWN)
        find_style(lower);
    if (style == ATTACHED) {
        check(mkdirat(agent, "lower", 0700), "mkdir", "lower");
        check(move_mount(lower, "", agent, "lower", MOVE_MOUNT_F_EMPTY_PATH), "move_mount", "lower");
    }
    s->rootfs = overlay(lower, upper, work);
    if (style == ATTACHED) {
        char path[512];
        snprintf(path, sizeof path, "%s/lower", s->agent_dir);
        check(umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW), "umount2", path);
    }
    close(lower);
    close(work);
    close(upper);
}

static void pipe_of(int agent, const char *name, unsigned owner, int *reader, int *writer)
{
    check(mkfifoat(agent, name, 0600), "mkfifo", name);
    check(fchownat(agent, name, owner, owner, AT_SYMLINK_NOFOLLOW), "chown", name);
    *reader = check(openat(agent, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW), "open", name);
    *writer = check(openat(agent, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW), "open", name);
}

void rootfs_create(const struct floor_config *config, struct floor_start *s)
{
    check(mkdir(s->agent_dir, 0700), "mkdir", s->agent_dir);
    int agent = check(open(s->agent_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", s->agent_dir);
    prepare(agent, id_base(s));
    mount_root(config, s, agent);
    s->in = check(open("/dev/null", O_RDONLY | O_CLOEXEC | O_NOFOLLOW), "open", "/dev/null");
    pipe_of(agent, "stdout", id_base(s), &s->read_out, &s->out);
    pipe_of(agent, "stderr", id_base(s), &s->read_err, &s->err);
    close(agent);
}

void rootfs_destroy(const struct floor_start *s)
{
    static const struct { const char *name; int flags; } left[] = {
        {"upper/etc/hostname", 0}, {"upper/etc/hosts", 0}, {"upper/etc/resolv.conf", 0}, {"upper/etc", AT_REMOVEDIR},
        {"upper", AT_REMOVEDIR}, {"work/work/incompat/volatile/dirty", 0},
        {"work/work/incompat/volatile", AT_REMOVEDIR}, {"work/work/incompat", AT_REMOVEDIR},
        {"work/work", AT_REMOVEDIR}, {"work", AT_REMOVEDIR}, {"stdout", 0}, {"stderr", 0}};
    int agent = check(open(s->agent_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", s->agent_dir);
    for (size_t i = 0; i < sizeof left / sizeof *left; i++)
        check(unlinkat(agent, left[i].name, left[i].flags), "unlink", left[i].name);
    if (style == ATTACHED)
        check(unlinkat(agent, "lower", AT_REMOVEDIR), "unlink", "lower");
    close(agent);
    check(rmdir(s->agent_dir), "rmdir", s->agent_dir);
}
