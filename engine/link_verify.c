/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/link_verify.h"

#include <sys/stat.h>

#include "engine/format/verify.h"

struct file {
    Ds__FileHash message;
    uint8_t digest[DS_SHA256_BYTES];
};

/* One allocation: the message, what it points to, and the files. */
struct verification {
    Ds__Verification message; /* first */
    struct file *files;       /* [n_fds] */
    Ds__FileHash *hashes[];   /* [n_fds] */
};

/* Hashing is the first half of the work that is told, decoding the second. */
struct share {
    int (*progress)(void *arg, double fraction);
    void *arg;
    double from, width, told;
};

static int take_share(void *arg, double fraction)
{
    struct share *share = arg;

    if (fraction > share->told)
        share->told = fraction;
    return share->progress(share->arg, share->from + share->width * share->told);
}

static int hash_file(struct file *file, int fd, const char *name, struct share *share,
                     struct ds_error *error)
{
    struct stat status;
    int r;

    file->message = (Ds__FileHash) DS__FILE_HASH__INIT;
    if (name)
        file->message.name = (char *) name;
    if (fstat(fd, &status) == 0)
        file->message.bytes = (uint64_t) status.st_size;
    r = ds_file_sha256(fd, take_share, share, file->digest);
    if (r < 0 && r != -ECANCELED)
        return ds_error_set(error, r, "%s: it cannot be read: %s", name ? name : "the file",
                            strerror(-r));
    file->message.sha256 = (ProtobufCBinaryData){ .data = file->digest, .len = DS_SHA256_BYTES };
    return r;
}

int ds_link_verify(const struct ds_checkpoint *checkpoint, const int *fds, const char *const *names,
                   unsigned n_fds, int (*progress)(void *arg, double fraction), void *arg,
                   Ds__Verification **ret_verification, struct ds_error *error)
{
    struct verification *all =
        calloc(1, sizeof *all + n_fds * (sizeof *all->hashes + sizeof(struct file)));
    struct share share = { .progress = progress, .arg = arg, .width = 0.5 / n_fds };
    struct ds_verification found;
    int r = 0;

    if (!all)
        return -ENOMEM;
    all->files = (struct file *) (all->hashes + n_fds);
    for (unsigned i = 0; i < n_fds && r == 0; i++) {
        share.from = 0.5 * i / n_fds;
        share.told = 0;
        all->hashes[i] = &all->files[i].message;
        r = hash_file(&all->files[i], fds[i], names ? names[i] : NULL, &share, error);
    }
    share = (struct share){ .progress = progress, .arg = arg, .from = 0.5, .width = 0.5 };
    if (r == 0)
        r = ds_checkpoint_verify(checkpoint, take_share, &share, &found, error);
    if (r < 0) {
        free(all);
        return r;
    }
    all->message = (Ds__Verification) DS__VERIFICATION__INIT;
    all->message.n_files = n_fds;
    all->message.files = all->hashes;
    all->message.n_tensors = found.n_tensors;
    all->message.n_values = found.n_values;
    all->message.n_vocab = ds_checkpoint_vocab(checkpoint)->n_tokens;
    *ret_verification = &all->message;
    return 0;
}
