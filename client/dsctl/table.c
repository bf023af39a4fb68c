/* SPDX-License-Identifier: Apache-2.0 */
#include "client/dsctl/dsctl.h"
#include "client/dsctl/json.h"

#include <ctype.h>

#include "proto/base.h"

struct cell {
    char *text;
    bool right;
};

struct dsctl_table {
    unsigned n_columns;
    size_t n_cells, capacity; /* the titles are the first row */
    struct cell *cells;
};

struct dsctl_table *dsctl_table_new(unsigned n_columns, const char *const *titles)
{
    struct dsctl_table *table = calloc(1, sizeof *table);

    if (!table)
        return NULL;
    table->n_columns = n_columns;
    for (unsigned i = 0; i < n_columns; i++)
        dsctl_cell(table, false, "%s", titles[i]);
    return table;
}

void dsctl_cell(struct dsctl_table *table, bool right, const char *format, ...)
{
    struct cell *cell;
    va_list ap;

    if (!table)
        return;
    if (table->n_cells == table->capacity) {
        size_t capacity = table->capacity ? table->capacity * 2 : 64;
        struct cell *cells = realloc(table->cells, capacity * sizeof *cells);

        if (!cells)
            return;
        table->cells = cells;
        table->capacity = capacity;
    }
    cell = &table->cells[table->n_cells++];
    cell->right = right;
    va_start(ap, format);
    if (vasprintf(&cell->text, format, ap) < 0)
        cell->text = NULL;
    va_end(ap);
}

/* Columns on the screen of UTF-8 text, counting every character as one. */
static int width(const char *text)
{
    int n = 0;

    for (; text && *text; text++)
        n += ((unsigned char) *text & 0xc0) != 0x80;
    return n;
}

static int column_width(const struct dsctl_table *table, unsigned column)
{
    int widest = 0;

    for (size_t i = column; i < table->n_cells; i += table->n_columns)
        if (width(table->cells[i].text) > widest)
            widest = width(table->cells[i].text);
    return widest;
}

void dsctl_table_print(struct dsctl_table *table)
{
    if (!table)
        return;
    for (size_t i = 0; i < table->n_cells; i++) {
        const struct cell *cell = &table->cells[i];
        unsigned column = (unsigned) (i % table->n_columns);
        bool last = column + 1 == table->n_columns;
        /* a title stands as its column does */
        bool right = i < table->n_columns && table->n_cells > table->n_columns
                         ? table->cells[i + table->n_columns].right
                         : cell->right;
        int pad = column_width(table, column) - width(cell->text);

        printf("%*s", right ? pad : 0, "");
        if (cell->text)
            dsctl_print_harmless(stdout, cell->text, strlen(cell->text));
        printf("%*s%s", right || last ? 0 : pad, "", last ? "\n" : "  ");
    }
    for (size_t i = 0; i < table->n_cells; i++)
        free(table->cells[i].text);
    free(table->cells);
    free(table);
}

const char *dsctl_kv_type(Ds__KvType type)
{
    const ProtobufCEnumValue *value =
        protobuf_c_enum_descriptor_get_value(&ds__kv_type__descriptor, (int) type);

    return value && type != DS__KV_TYPE__KV_AUTO ? value->name + strlen("KV_") : "-";
}

const char *dsctl_bytes(char buffer[32], uint64_t bytes)
{
    const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB" };
    double amount = (double) bytes;
    unsigned unit = 0;

    while (amount >= 999.5 && unit < 5) {
        amount /= 1000;
        unit++;
    }
    (void) snprintf(buffer, 32, unit && amount < 99.95 ? "%.1f %s" : "%.0f %s", amount,
                    units[unit]);
    return buffer;
}

const char *dsctl_duration(char buffer[32], double seconds)
{
    unsigned long s = seconds > 0 ? (unsigned long) seconds : 0;

    if (s < 60)
        (void) snprintf(buffer, 32, "%lu s", s);
    else if (s < 3600)
        (void) snprintf(buffer, 32, "%lu min %lu s", s / 60, s % 60);
    else if (s < 86400)
        (void) snprintf(buffer, 32, "%lu h %lu min", s / 3600, s / 60 % 60);
    else
        (void) snprintf(buffer, 32, "%lu d %lu h", s / 86400, s / 3600 % 24);
    return buffer;
}

const char *dsctl_quoted(char *buffer, size_t size, const void *bytes, size_t n_bytes)
{
    const unsigned char *in = bytes;
    size_t n = 0;

    buffer[n++] = '"';
    for (size_t i = 0; i < n_bytes && n + 6 < size; i++) {
        size_t length = dsctl_utf8_length(in + i, n_bytes - i);

        if (in[i] == '\n') {
            n += (size_t) sprintf(buffer + n, "\\n");
        } else if (in[i] == '"' || in[i] == '\\') {
            n += (size_t) sprintf(buffer + n, "\\%c", in[i]);
        } else if (length == 0 || in[i] < 0x20 || in[i] == 0x7f ||
                   (in[i] == 0xc2 && in[i + 1] < 0xa0)) { /* U+0080 to U+009F command too */
            n += (size_t) sprintf(buffer + n, "\\x%02x", in[i]);
        } else {
            memcpy(buffer + n, in + i, length);
            n += length;
            i += length - 1;
        }
    }
    buffer[n++] = '"';
    buffer[n] = '\0';
    return buffer;
}
