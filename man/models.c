/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes dsd-models(7): the text on the standard input, with each line that is @TABLE@ replaced by
 * what the engine's own table of that name says. Part of the build; an unknown name is an error.
 */
#include <stdio.h>

#include "engine/backend.h"
#include "engine/format/folder.h"
#include "engine/format/quant.h"
#include "engine/text/pretokenise.h"
#include "proto/ds.pb-c.h"

static void print_architectures(void)
{
    const struct ds_architecture_traits *traits;

    printf("[[ *architecture*\n:< *models*\n:< *classes*\n");
    for (unsigned i = 0; (traits = ds_architecture_traits(i)); i++) {
        const char *class, *architecture, *comma = "";

        printf("|  %s\n:  %s\n:  ", traits->name, traits->models);
        for (unsigned j = 0; (class = ds_hf_class(j, &architecture)); j++)
            if (strcmp(architecture, traits->name) == 0) {
                printf("%s%s", comma, class);
                comma = ", ";
            }
        printf("\n");
    }
}

/* Rows of the types from .. end - 1. */
static void print_types(uint32_t from, uint32_t end)
{
    printf("[[ *type*\n:> *number*\n:> *bits a weight*\n:> *weights a block*\n");
    for (uint32_t type = from; type < end; type++) {
        const struct ds_type_traits *traits = ds_type_traits(type);

        if (!traits)
            continue;
        printf("|  %s\n:  %u\n:  %.4g\n:  %u\n", traits->name, type,
               8.0 * traits->block_bytes / traits->block_elements, traits->block_elements);
    }
}

static void print_ggml_types(void)
{
    print_types(0, DS_TYPE_GGML_END);
}

/* A name with what scdoc would take for formatting defused. */
static void print_plain(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '_' || text[i] == '*')
            (void) putchar('\\');
        (void) putchar(text[i]);
    }
}

static void print_packed(void)
{
    const struct ds_packed_traits *traits;

    printf("[[ *form*\n:< *matrices*\n:< *in memory*\n:< *rounding*\n");
    for (unsigned form = 0; (traits = ds_packed_traits(form)); form++)
        for (unsigned i = 0; i < sizeof traits->becomes / sizeof traits->becomes[0]; i++) {
            if (!traits->becomes[i].when)
                break;
            printf("|  %s\n:  %s\n:  ", i ? "" : traits->name, traits->becomes[i].when);
            print_plain(ds_type_name(traits->becomes[i].type),
                        strlen(ds_type_name(traits->becomes[i].type)));
            printf("\n:  %s\n", traits->becomes[i].rounding);
        }
    printf("\nRead of them:");
    for (unsigned form = 0; (traits = ds_packed_traits(form)); form++) {
        printf("%s %s (", form ? ";" : "", traits->name);
        print_plain(traits->reads, strlen(traits->reads));
        printf(")");
    }
    printf(".\n");
}

/* The wire's own names, without the KV_ that keeps them apart from others there. */
static void print_kv_types(void)
{
    const ProtobufCEnumDescriptor *types = &ds__kv_type__descriptor;

    for (unsigned i = 0; i < types->n_values; i++) {
        const char *name = types->values[i].name;

        name += strncmp(name, "KV_", 3) == 0 ? 3 : 0;
        printf("%s*", i ? ", " : "");
        print_plain(name, strlen(name));
        printf("*");
    }
    printf("\n");
}

static void print_pretokenisers(void)
{
    const struct ds_pretokeniser *pretokeniser;

    for (unsigned i = 0; (pretokeniser = ds_pretokeniser_at(i)); i++) {
        size_t first = strcspn(pretokeniser->names, " ");
        const char *rest = pretokeniser->names + first;

        printf("*%.*s*\n\t", (int) first, pretokeniser->names);
        if (*rest)
            print_plain(rest + 1, strlen(rest + 1));
        else
            printf("no other name");
        printf("\n\n");
    }
}

static const struct {
    const char *name;
    void (*print)(void);
} tables[] = {
    { "@ARCHITECTURES@\n", print_architectures },
    { "@TYPES@\n", print_ggml_types },
    { "@PACKED@\n", print_packed },
    { "@KV@\n", print_kv_types },
    { "@PRETOKENISERS@\n", print_pretokenisers },
};

static int print_line(const char *line)
{
    if (line[0] != '@')
        return fputs(line, stdout) < 0;
    for (unsigned i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (strcmp(line, tables[i].name) == 0) {
            tables[i].print();
            return 0;
        }
    }
    fprintf(stderr, "models: there is no table %s", line);
    return 1;
}

int main(void)
{
    ds_cleanup(ds_free_p) char *line = NULL;
    size_t room = 0;

    while (getline(&line, &room, stdin) >= 0) {
        if (print_line(line) != 0)
            return 1;
    }
    return fflush(stdout) != 0 || ferror(stdin);
}
