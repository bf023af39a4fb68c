/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gguf_writer.h - writes GGUF files for tests: keys and tensors in the order they are added.
 *
 * It checks nothing, so that it can write damaged files too. Running out of memory ends the test
 * program. One thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/format/gguf.h"

struct ds_gguf_writer;

/* Version 3, alignment 32 (ds_gguf_writer_alignment() changes it and adds the key). */
struct ds_gguf_writer *ds_gguf_writer_new(void);
struct ds_gguf_writer *ds_gguf_writer_free(struct ds_gguf_writer *writer);
void ds_gguf_writer_free_p(struct ds_gguf_writer **writer);

void ds_gguf_writer_version(struct ds_gguf_writer *writer, uint32_t version);
void ds_gguf_writer_alignment(struct ds_gguf_writer *writer, uint32_t alignment);

void ds_gguf_writer_u16(struct ds_gguf_writer *writer, const char *key, uint16_t value);
void ds_gguf_writer_u32(struct ds_gguf_writer *writer, const char *key, uint32_t value);
void ds_gguf_writer_i32(struct ds_gguf_writer *writer, const char *key, int32_t value);
void ds_gguf_writer_u64(struct ds_gguf_writer *writer, const char *key, uint64_t value);
void ds_gguf_writer_f32(struct ds_gguf_writer *writer, const char *key, float value);
void ds_gguf_writer_bool(struct ds_gguf_writer *writer, const char *key, int value);
void ds_gguf_writer_string(struct ds_gguf_writer *writer, const char *key, const char *value);
void ds_gguf_writer_bytes(struct ds_gguf_writer *writer, const char *key, struct ds_bytes value);

/* Any fixed-width type; bytes = size of one element. */
void ds_gguf_writer_array(struct ds_gguf_writer *writer, const char *key, enum ds_gguf_type type,
                          const void *elements, size_t bytes, uint64_t n);
void ds_gguf_writer_strings(struct ds_gguf_writer *writer, const char *key,
                            const struct ds_bytes *strings, uint64_t n);

/* A raw key: type and payload as given. */
void ds_gguf_writer_raw(struct ds_gguf_writer *writer, const char *key, uint32_t type,
                        const void *payload, size_t size);

/* data is copied: the size_bytes of blocks as they are to lie in the file. */
void ds_gguf_writer_tensor(struct ds_gguf_writer *writer, const char *name, uint32_t type,
                           unsigned n_dims, const uint64_t *dims, const void *data,
                           size_t size_bytes);

/* size_bytes of data, which are the tile_bytes at tile again and again (the last time perhaps in
 * part). tile is borrowed until the file is written: files larger than memory can be made. */
void ds_gguf_writer_tiled(struct ds_gguf_writer *writer, const char *name, uint32_t type,
                          unsigned n_dims, const uint64_t *dims, const void *tile,
                          size_t tile_bytes, uint64_t size_bytes);

/* Values are quantised to type by ds_quantise(). */
void ds_gguf_writer_floats(struct ds_gguf_writer *writer, const char *name, uint32_t type,
                           unsigned n_dims, const uint64_t *dims, const float *values);

/* Fresh memory: the whole file. free(). */
uint8_t *ds_gguf_writer_finish(struct ds_gguf_writer *writer, size_t *ret_size);
int ds_gguf_writer_memfd(struct ds_gguf_writer *writer); /* fresh descriptor, -1 = failed */
int ds_gguf_writer_file(struct ds_gguf_writer *writer, const char *path); /* 0 or negative errno */

/* A memfd holding size bytes; for files that were damaged by hand. */
int ds_memfd_of(const void *data, size_t size);
