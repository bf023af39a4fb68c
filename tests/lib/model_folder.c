/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/model_folder.h"

#include <dirent.h>
#include <fcntl.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "proto/folder.h"

static int wanted(const struct dirent *item)
{
    return ds_folder_wants(item->d_name);
}

void ds_model_folder_open(struct ds_model_folder *folder, const char *path)
{
    struct dirent **items = NULL;
    int n = scandir(path, &items, wanted, alphasort);
    char file[4096];

    *folder = (struct ds_model_folder){ .n = 0 };
    assert_true(n > 0 && n <= (int) DS_MODEL_FILES_MAX);
    for (int i = 0; i < n; i++) {
        (void) snprintf(file, sizeof file, "%s/%s", path, items[i]->d_name);
        folder->fds[i] = open(file, O_RDONLY | O_CLOEXEC);
        folder->names[i] = strdup(items[i]->d_name);
        assert_true(folder->fds[i] >= 0 && folder->names[i]);
        folder->n++;
        free(items[i]);
    }
    free(items);
}

void ds_model_folder_close(struct ds_model_folder *folder)
{
    for (unsigned i = 0; i < folder->n; i++) {
        (void) close(folder->fds[i]);
        free(folder->names[i]);
    }
}
