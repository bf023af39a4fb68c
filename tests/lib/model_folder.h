/* SPDX-License-Identifier: Apache-2.0 */
/* model_folder.h - the open files of a folder, as dsctl or dsd would hand them over. */
#pragma once

#include "proto/base.h"

struct ds_model_folder {
    int fds[DS_MODEL_FILES_MAX];
    char *names[DS_MODEL_FILES_MAX];
    unsigned n;
};

/* Every file of the folder that belongs to a model, by name. Failures end the test. */
void ds_model_folder_open(struct ds_model_folder *folder, const char *path);
void ds_model_folder_close(struct ds_model_folder *folder);
