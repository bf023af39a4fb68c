/* SPDX-License-Identifier: Apache-2.0 */
#include "shm/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/base.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 0x0008u
#endif
#ifndef F_SEAL_FUTURE_WRITE /* Linux 5.1 */
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static int seals_for(enum ds_region_writer writer)
{
    int seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;

    return writer == DS_REGION_CREATOR ? seals | F_SEAL_FUTURE_WRITE : seals;
}

size_t ds_region_page(void)
{
    return (size_t) sysconf(_SC_PAGESIZE);
}

int ds_region_create(const char *name, size_t size, int *ret_fd)
{
    ds_cleanup(ds_close_p) int fd = -1;
    int r;

    if (size > DS_REGION_BYTES_MAX)
        return -EMSGSIZE;
    fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t) size) < 0)
        return -errno;
    do
        r = fallocate(fd, 0, 0, (off_t) size);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -errno;
    *ret_fd = ds_steal_fd(&fd);
    return 0;
}

int ds_region_seal(int fd, enum ds_region_writer writer)
{
    return fcntl(fd, F_ADD_SEALS, seals_for(writer)) < 0 ? -errno : 0;
}

int ds_region_check(int fd, size_t size, enum ds_region_writer writer)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    int wanted = seals_for(writer);

    if (seals < 0 || (seals & wanted) != wanted)
        return -EPROTO;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < 0 || (size_t) st.st_size != size)
        return -EPROTO;
    return 0;
}

int ds_region_map(struct ds_region *ret_region, int fd, size_t size, size_t twice, bool writable)
{
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    struct ds_region region = { .size = size, .twice = twice };
    int r;

    region.base =
        mmap(NULL, size + twice, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region.base == MAP_FAILED)
        return -errno;
    if (mmap(region.base, size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
        (twice && mmap((char *) region.base + size, twice, protection, MAP_SHARED | MAP_FIXED, fd,
                       (off_t) (size - twice)) == MAP_FAILED)) {
        r = -errno;
        ds_region_unmap(&region);
        return r;
    }
    *ret_region = region;
    return 0;
}

void ds_region_unmap(struct ds_region *region)
{
    if (region->base)
        (void) munmap(region->base, region->size + region->twice);
    *region = (struct ds_region){ 0 };
}
