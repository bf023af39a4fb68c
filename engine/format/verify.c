/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/format/verify.h"

#include <math.h>
#include <nettle/sha2.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/format/packed.h"
#include "engine/format/quant.h"

#define READ_BYTES ((size_t) 1 << 20)

struct decoding {
    const struct ds_checkpoint *checkpoint;
    float *row; /* [row_room] */
    size_t row_room;
    int (*progress)(void *arg, double fraction);
    void *arg;
    struct ds_error *error;
};

static int grow(struct decoding *decoding, uint64_t n)
{
    float *row;

    if (n <= decoding->row_room)
        return 0;
    row = realloc(decoding->row, n * sizeof *row);
    if (!row)
        return ds_error_set(decoding->error, -ENOMEM, "%s: no memory to decode a row of %llu",
                            ds_checkpoint_name(decoding->checkpoint), (unsigned long long) n);
    decoding->row = row;
    decoding->row_room = n;
    return 0;
}

/* Every value of one tensor, row by row. */
static int decode(struct decoding *decoding, const struct ds_tensor *tensor, uint64_t *n_values)
{
    const struct ds_type_traits *traits = ds_type_traits(tensor->type);
    const uint64_t columns = tensor->dims[0];
    const uint64_t n_rows = tensor->dims[1] * tensor->dims[2] * tensor->dims[3];
    int r = grow(decoding, columns);

    for (uint64_t i = 0; i < n_rows && r == 0; i++) {
        ds_tensor_row_floats(tensor, i, decoding->row);
        for (uint64_t j = 0; j < columns; j++) {
            if (isfinite(decoding->row[j]))
                continue;
            return ds_error_set(decoding->error, -EBADMSG,
                                "%s: element %llu of row %llu of tensor '%s' (%s) is %g: the file "
                                "is damaged, fetch it again",
                                ds_checkpoint_name(decoding->checkpoint), (unsigned long long) j,
                                (unsigned long long) i, tensor->name, traits->name,
                                (double) decoding->row[j]);
        }
        if (i % 1024 == 1023 && decoding->progress(decoding->arg, 0))
            r = -ECANCELED;
    }
    *n_values += columns * n_rows;
    return r;
}

static int no_progress(void *arg, double fraction)
{
    (void) arg;
    (void) fraction;
    return 0;
}

int ds_checkpoint_verify(const struct ds_checkpoint *checkpoint,
                         int (*progress)(void *arg, double fraction), void *arg,
                         struct ds_verification *ret_verification, struct ds_error *error)
{
    struct decoding decoding = { .checkpoint = checkpoint,
                                 .progress = progress ? progress : no_progress,
                                 .arg = arg,
                                 .error = error };
    const unsigned n = ds_checkpoint_n_tensors(checkpoint);
    int r = 0;

    *ret_verification = (struct ds_verification){ .n_tensors = n };
    for (unsigned i = 0; i < n && r == 0; i++) {
        r = decode(&decoding, ds_checkpoint_tensor_at(checkpoint, i), &ret_verification->n_values);
        if (r == 0 && decoding.progress(arg, (i + 1.0) / n))
            r = -ECANCELED;
    }
    free(decoding.row);
    if (r == 0 || r == -EBADMSG) { /* a file that was changed meanwhile is not a damaged one */
        int changed = ds_checkpoint_intact(checkpoint, error);

        r = changed < 0 ? changed : r;
    }
    return r;
}

int ds_file_sha256(int fd, int (*progress)(void *arg, double fraction), void *arg,
                   uint8_t ret_digest[DS_SHA256_BYTES])
{
    ds_cleanup(ds_free_p) uint8_t *bytes = malloc(READ_BYTES);
    struct sha256_ctx hash;
    struct stat status;
    off_t at = 0;
    ssize_t n;

    if (!bytes)
        return -ENOMEM;
    if (fstat(fd, &status) < 0)
        return -errno;
    sha256_init(&hash);
    while ((n = pread(fd, bytes, READ_BYTES, at)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        sha256_update(&hash, (size_t) n, bytes);
        at += n;
        if (progress &&
            progress(arg, status.st_size > 0 ? (double) at / (double) status.st_size : 1))
            return -ECANCELED;
    }
    sha256_digest(&hash, DS_SHA256_BYTES, ret_digest);
    return 0;
}
