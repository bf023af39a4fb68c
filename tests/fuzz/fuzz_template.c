/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_template.c - any bytes as a chat template, those after the first NUL as its variables' JSON.
 *
 * sources: engine/text
 *
 * With DSD_FUZZ_SEEDS=FOLDER in its environment it writes its seeds there and ends.
 */
#include "engine/text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *source = (const char *) data;
    const char *nul = size ? memchr(source, '\0', size) : NULL;
    size_t source_size = nul ? (size_t) (nul - source) : size;
    const struct ds_chat_message messages[] = {
        { .role = "system", .content = { " s\n", 3 } },
        { .role = "user", .content = { "\xc3\xa4<think>x</think>y", 19 }, .name = "n" },
        { .role = "assistant",
          .content = { "", 0 },
          .extra_json = { "{\"tool_calls\":[{}]}", 19 } },
    };
    struct ds_chat chat = { .messages = messages,
                            .n_messages = 3,
                            .tools_json = { "[{\"name\":\"f\"}]", 14 },
                            .add_generation_prompt = size % 2,
                            .bos_text = { "<s>", 3 } };
    ds_cleanup(ds_template_free_p) struct ds_template *tmpl = NULL;
    ds_cleanup(ds_free_p) char *text = NULL;
    struct ds_error error = { "" };
    size_t text_size;
    int r;

    if (nul)
        chat.variables_json = (struct ds_bytes){ nul + 1, size - source_size - 1 };
    r = ds_template_new(&tmpl, (struct ds_bytes){ source, source_size }, &error);
    if (r == 0)
        r = ds_template_render(tmpl, &chat, &text, &text_size, &error);
    if (r < 0 ? !error.text[0] : text[text_size] != '\0')
        abort();
    return 0;
}

static const char *const seeds[] = {
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m.content|trim }}{% endfor %}",
    "{%- if tools %}{{ tools|tojson(indent=2) }}{% elif x is defined %}{{ x }}{% else %}n{% endif "
    "%}",
    "{% set ns = namespace(a=1) %}{% for i in range(5) if i > 1 %}{% set ns.a = ns.a + i %}"
    "{{ loop.index }}{% else %}e{% endfor %}{{ ns.a }}",
    "{% macro m(a, b=2) %}[{{ a }}{{ b }}{{ caller() }}]{% endmacro %}{% call m(1) %}c{% endcall "
    "%}",
    "{{ 'a,b'.split(',')[::-1]|join('-')|upper|replace('A', 'b')|default('x', true) }}",
    "{% set x | upper %}a{% endset %}{{ x ~ 1.5 ~ none }}{# c #}{% raw %}{{ }}{% endraw %}",
    "{{ messages[1:]|map(attribute='role')|list|sort|unique|first }}{{ 7 // 2 % 3 ** 2 }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length in [1, (2, 3), {'a': 1}] }}",
    "{{ '%s %5d %.2f' % ('a', 1, 2.5) }}{{ '{} {x}'.format(1, x=2) }}{{ 'aBc'.title() }}",
    "{% with a = 1 %}{% filter upper %}{{ a if a else 'b' }}{% endfilter %}{% endwith %}",
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% continue %}{% endfor %}"
    "{{ raise_exception('no') }}",
};

/* Before main(), so that it needs no word with whatever drives the target. */
__attribute__((constructor)) static void write_seeds(void)
{
    static const char json[] = "{\"x\":[1,2.5e3,null,true,{\"a\":\"\\u00e9\\n\"}],\"big\":123}";
    const char *folder = getenv("DSD_FUZZ_SEEDS");

    if (!folder)
        return;
    for (unsigned i = 0; i < sizeof seeds / sizeof seeds[0]; i++) {
        char path[4096];
        FILE *file;

        (void) snprintf(path, sizeof path, "%s/seed%u", folder, i);
        file = fopen(path, "we");
        if (!file)
            continue;
        (void) fwrite(seeds[i], 1, strlen(seeds[i]) + 1, file);
        (void) fwrite(json, 1, sizeof json - 1, file);
        (void) fclose(file);
    }
    exit(0);
}
