/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/listener.h"

#include "proto/base.h"

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#define BACKLOG 128

static int from_systemd(int *ret_fd, struct ds_error *error)
{
    int n = sd_listen_fds(1);

    if (n < 0)
        return ds_error_set(error, n, "LISTEN_FDS: %s", strerror(-n));
    for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + n; fd++) {
        if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) > 0) {
            (void) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
            *ret_fd = fd;
            return 1;
        }
    }
    return n == 0 ? 0
                  : ds_error_set(error, -EINVAL,
                                 "systemd passed no listening SEQPACKET socket; dsd.socket must "
                                 "say ListenSequentialPacket=");
}

/* Does somebody answer there? The kernel takes an io_uring apart after its process has gone, and a
 * listener that is being accepted from with it: for some milliseconds a dead dsd can still be
 * connected to. So it also has to live. */
static bool is_alive(const struct sockaddr_un *address)
{
    ds_cleanup(ds_close_p) int fd =
        socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct ucred peer = { 0 };
    socklen_t size = sizeof(peer);

    if (connect(fd, (const struct sockaddr *) address, sizeof(*address)) < 0)
        return errno == EAGAIN;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.pid <= 0)
        return true;
    return kill(peer.pid, 0) == 0 || errno != ESRCH;
}

/* Our own runtime directory may be missing; its parent must be there. */
static void make_directory(const char *path)
{
    ds_cleanup(ds_free_p) char *directory = strdup(path);
    char *slash = directory ? strrchr(directory, '/') : NULL;

    if (!slash || slash == directory)
        return;
    *slash = 0;
    (void) mkdir(directory, geteuid() == 0 ? 0755 : 0700);
}

static int clear_the_way(const char *path, const struct sockaddr_un *address,
                         struct ds_error *error)
{
    struct stat status;

    if (lstat(path, &status) < 0)
        return errno == ENOENT ? 0 : ds_error_set(error, -errno, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(status.st_mode))
        return ds_error_set(error, -EEXIST, "%s: exists and is no socket; move it away", path);
    if (is_alive(address))
        return ds_error_set(error, -EADDRINUSE, "%s: another dsd answers there", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return ds_error_set(error, -errno, "%s: a socket left behind cannot be removed: %s", path,
                            strerror(errno));
    return 0;
}

static int bind_path(const char *path, const struct sockaddr_un *address, int *ret_fd,
                     struct ds_error *error)
{
    ds_cleanup(ds_close_p) int fd =
        socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mode = geteuid() == 0 ? 0660 : 0600;
    mode_t mask = umask(0777 & ~mode);
    const struct group *group;
    int r;

    r = fd < 0 ? -1 : bind(fd, (const struct sockaddr *) address, sizeof(*address));
    (void) umask(mask);
    if (r < 0)
        return ds_error_set(error, -errno, "%s: %s", path, strerror(errno));
    group = geteuid() == 0 ? getgrnam("dsd") : NULL;
    if (group && lchown(path, (uid_t) -1, group->gr_gid) < 0)
        return ds_error_set(error, -errno, "%s: group dsd: %s", path, strerror(errno));
    if (listen(fd, BACKLOG) < 0)
        return ds_error_set(error, -errno, "%s: %s", path, strerror(errno));
    *ret_fd = ds_steal_fd(&fd);
    return 0;
}

int ds_listener_open(const char *path, int *ret_fd, bool *ret_made, struct ds_error *error)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int r;

    *ret_made = false;
    r = from_systemd(ret_fd, error);
    if (r != 0)
        return r < 0 ? r : 0;
    if (strlen(path) >= sizeof address.sun_path)
        return ds_error_set(error, -ENAMETOOLONG, "%s: longer than %zu bytes", path,
                            sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    make_directory(path);
    r = clear_the_way(path, &address, error);
    if (r == 0)
        r = bind_path(path, &address, ret_fd, error);
    *ret_made = r == 0;
    return r;
}
