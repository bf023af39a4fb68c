/* SPDX-License-Identifier: Apache-2.0 */
/* JSON as Python's json module reads and writes it: integers stay integers of any size, members
 * keep their order, the last of equal names wins. Also str() of values, which is JSON's near
 * relation. */
#include <ctype.h>
#include <math.h>

#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

/* --- reading --- */

struct reader {
    struct ds_jinja_run *run;
    const char *at, *end, *what;
};

static struct ds_jinja_value read_value(struct reader *reader);

static struct ds_jinja_value bad(struct reader *reader)
{
    struct ds_jinja_run *run = reader->run;

    if (run->code == 0)
        run->code = ds_error_set(run->error, -EINVAL, "%s: not valid JSON", reader->what);
    return ds_jinja_none();
}

static void skip_blanks(struct reader *reader)
{
    while (reader->at < reader->end && strchr(" \t\r\n", *reader->at) && *reader->at)
        reader->at++;
}

static bool skip(struct reader *reader, char c)
{
    skip_blanks(reader);
    if (reader->at >= reader->end || *reader->at != c)
        return false;
    reader->at++;
    return true;
}

static bool read_hex(struct reader *reader, unsigned *ret_code)
{
    unsigned code = 0;

    if (reader->end - reader->at < 4)
        return false;
    for (unsigned i = 0; i < 4; i++, reader->at++) {
        char c = *reader->at;

        if (!isxdigit((unsigned char) c))
            return false;
        code = code * 16 + (unsigned) (c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    *ret_code = code;
    return true;
}

static bool read_escape(struct reader *reader, char **to)
{
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    unsigned code, low;
    const char *simple;

    if (reader->at >= reader->end)
        return false;
    simple = *reader->at ? strchr(from, *reader->at) : NULL;
    if (simple) {
        *(*to)++ = into[simple - from];
        reader->at++;
        return true;
    }
    if (*reader->at++ != 'u' || !read_hex(reader, &code))
        return false;
    if (code >= 0xd800 && code < 0xdc00 && reader->end - reader->at >= 6 && reader->at[0] == '\\' &&
        reader->at[1] == 'u') {
        reader->at += 2;
        if (!read_hex(reader, &low))
            return false;
        if (low >= 0xdc00 && low < 0xe000)
            code = 0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff);
        else
            reader->at -= 6;
    }
    *to += ds_utf8_put(code, *to);
    return true;
}

/* After the opening quote. Strings without escapes are borrowed from the input. */
static struct ds_bytes read_string(struct reader *reader)
{
    const char *start = reader->at, *close = start;
    char *text, *to;
    bool good = true;

    while (close < reader->end && *close != '"')
        close += *close == '\\' ? 2 : 1;
    if (close >= reader->end || !ds_jinja_pay(reader->run, (uint64_t) (close - start) / 64)) {
        (void) bad(reader);
        return (struct ds_bytes){ "", 0 };
    }
    if (!memchr(start, '\\', (size_t) (close - start))) {
        reader->at = close + 1;
        return (struct ds_bytes){ start, (size_t) (close - start) };
    }
    text = to = ds_jinja_memory(reader->run, (size_t) (close - start) + 4);
    while (text && good && reader->at < close) {
        if (*reader->at != '\\') {
            *to++ = *reader->at++;
        } else {
            reader->at++;
            good = read_escape(reader, &to);
        }
    }
    if (!text || !good || reader->at != close) {
        (void) bad(reader);
        return (struct ds_bytes){ "", 0 };
    }
    reader->at = close + 1;
    return (struct ds_bytes){ text, (size_t) (to - text) };
}

static struct ds_jinja_value read_number(struct reader *reader)
{
    const char *start = reader->at;
    bool whole = true;
    char digits[512], *end;
    size_t size;
    int64_t integer;
    struct ds_jinja_value value;

    for (; reader->at < reader->end && *reader->at && strchr("+-.eE0123456789", *reader->at);
         reader->at++)
        whole &= isdigit((unsigned char) *reader->at) || *reader->at == '-';
    size = (size_t) (reader->at - start);
    if (size == 0 || size >= sizeof digits || start[size - 1] == '.' || *start == '.' ||
        *start == '+')
        return bad(reader);
    memcpy(digits, start, size);
    digits[size] = '\0';
    errno = 0;
    if (whole) {
        integer = strtoll(digits, &end, 10);
        if (*end)
            return bad(reader);
        if (errno != ERANGE)
            return ds_jinja_integer(integer);
    }
    value = ds_jinja_float(strtod(digits, &end));
    if (*end)
        return bad(reader);
    if (whole) /* printed as it came */
        value.text = (struct ds_bytes){ start, size };
    return value;
}

static struct ds_jinja_value read_array(struct reader *reader)
{
    struct ds_jinja_value list = ds_jinja_list(reader->run, DS_LIST);

    if (skip(reader, ']'))
        return list;
    while (reader->run->code == 0) {
        ds_jinja_push(reader->run, list, read_value(reader));
        if (skip(reader, ']'))
            return list;
        if (!skip(reader, ','))
            return bad(reader);
    }
    return list;
}

static struct ds_jinja_value read_object(struct reader *reader)
{
    struct ds_jinja_value dict = ds_jinja_dict(reader->run, DS_DICT);

    if (skip(reader, '}'))
        return dict;
    while (reader->run->code == 0) {
        struct ds_bytes name;

        if (!skip(reader, '"'))
            return bad(reader);
        name = read_string(reader);
        if (!skip(reader, ':'))
            return bad(reader);
        ds_jinja_put(reader->run, dict.dict, ds_jinja_string(name), read_value(reader));
        if (skip(reader, '}'))
            return dict;
        if (!skip(reader, ','))
            return bad(reader);
    }
    return dict;
}

static bool read_word(struct reader *reader, const char *word)
{
    size_t size = strlen(word);

    if ((size_t) (reader->end - reader->at) < size || memcmp(reader->at, word, size) != 0)
        return false;
    reader->at += size;
    return true;
}

static struct ds_jinja_value read_value(struct reader *reader)
{
    struct ds_jinja_value value;

    skip_blanks(reader);
    if (reader->at >= reader->end)
        return bad(reader);
    if (!ds_jinja_deeper(reader->run))
        return ds_jinja_none();
    if (skip(reader, '{'))
        value = read_object(reader);
    else if (skip(reader, '['))
        value = read_array(reader);
    else if (skip(reader, '"'))
        value = ds_jinja_string(read_string(reader));
    else if (read_word(reader, "true"))
        value = ds_jinja_bool(true);
    else if (read_word(reader, "false"))
        value = ds_jinja_bool(false);
    else if (read_word(reader, "null"))
        value = ds_jinja_none();
    else
        value = read_number(reader);
    reader->run->level--;
    return value;
}

struct ds_jinja_value ds_jinja_from_json(struct ds_jinja_run *run, struct ds_bytes json,
                                         const char *what)
{
    struct reader reader = { run, json.data, json.data + json.size, what };
    struct ds_jinja_value value = read_value(&reader);

    skip_blanks(&reader);
    if (run->code == 0 && reader.at != reader.end)
        return bad(&reader);
    return value;
}

/* --- writing: into a text of its own, which then moves to the arena --- */

struct ds_bytes ds_jinja_format_float(struct ds_jinja_run *run, double number)
{
    char digits[40], text[400], *exponent_at;
    int precision, exponent;

    if (isnan(number))
        return (struct ds_bytes){ "nan", 3 };
    if (isinf(number))
        return number > 0 ? (struct ds_bytes){ "inf", 3 } : (struct ds_bytes){ "-inf", 4 };
    for (precision = 0; precision < 17; precision++) { /* the fewest digits that read back */
        (void) snprintf(digits, sizeof digits, "%.*e", precision, number);
        if (strtod(digits, NULL) == number)
            break;
    }
    exponent_at = strchr(digits, 'e');
    exponent = exponent_at ? (int) strtol(exponent_at + 1, NULL, 10) : 0;
    if (exponent < -4 || exponent >= 16)
        (void) snprintf(text, sizeof text, "%.*se%c%02d", (int) (exponent_at - digits), digits,
                        exponent < 0 ? '-' : '+', abs(exponent));
    else
        (void) snprintf(text, sizeof text, "%.*f", precision > exponent ? precision - exponent : 1,
                        number);
    return ds_jinja_copy(run, (struct ds_bytes){ text, strlen(text) });
}

static void put(struct ds_jinja_run *run, const char *text)
{
    ds_jinja_write(run, (struct ds_bytes){ text, strlen(text) });
}

static void put_unicode(struct ds_jinja_run *run, unsigned code)
{
    char text[16];

    if (code >= 0x10000)
        (void) snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800 + ((code - 0x10000) >> 10),
                        0xdc00 + (code & 0x3ff));
    else
        (void) snprintf(text, sizeof text, "\\u%04x", code);
    put(run, text);
}

static void put_json_string(struct ds_jinja_run *run, struct ds_bytes text, bool ascii)
{
    static const char from[] = "\"\\\b\f\n\r\t";
    static const char *const into[] = { "\\\"", "\\\\", "\\b", "\\f", "\\n", "\\r", "\\t" };
    const char *plain = text.data, *end = text.data + text.size;

    put(run, "\"");
    for (const char *at = text.data; at < end && run->code == 0;) {
        size_t n = ds_utf8_first((struct ds_bytes){ at, (size_t) (end - at) });
        const char *escape = *at ? strchr(from, *at) : NULL;

        if (escape || (unsigned char) *at < 0x20 || (ascii && (*at & 0x80))) {
            ds_jinja_write(run, (struct ds_bytes){ plain, (size_t) (at - plain) });
            if (escape)
                put(run, into[escape - from]);
            else
                put_unicode(run, ds_utf8_code(at, n));
            plain = at + n;
        }
        at += n;
    }
    ds_jinja_write(run, (struct ds_bytes){ plain, (size_t) (end - plain) });
    put(run, "\"");
}

static void put_number(struct ds_jinja_run *run, const struct ds_jinja_value *value)
{
    char text[32];

    if (value->kind == DS_INTEGER) {
        (void) snprintf(text, sizeof text, "%lld", (long long) value->integer);
        put(run, text);
    } else if (value->text.size) {
        ds_jinja_write(run, value->text);
    } else {
        ds_jinja_write(run, ds_jinja_format_float(run, value->number));
    }
}

static void put_break(struct ds_jinja_run *run, const struct ds_jinja_json_style *style,
                      unsigned depth)
{
    if (style->indent < 0)
        return;
    put(run, "\n");
    for (uint64_t i = 0; i < depth * (uint64_t) style->indent && run->code == 0; i++)
        put(run, " ");
}

static void put_json(struct ds_jinja_run *run, const struct ds_jinja_value *value,
                     const struct ds_jinja_json_style *style, unsigned depth);

static void put_json_list(struct ds_jinja_run *run, const struct ds_jinja_list *list,
                          const struct ds_jinja_json_style *style, unsigned depth)
{
    put(run, "[");
    for (size_t i = 0; i < list->n && run->code == 0; i++) {
        if (i)
            ds_jinja_write(run, style->item_separator);
        put_break(run, style, depth + 1);
        put_json(run, &list->items[i], style, depth + 1);
    }
    if (list->n)
        put_break(run, style, depth);
    put(run, "]");
}

static void put_json_key(struct ds_jinja_run *run, const struct ds_jinja_value *key,
                         const struct ds_jinja_json_style *style)
{
    if (key->kind == DS_STRING) {
        put_json_string(run, key->text, style->ascii);
        return;
    }
    put(run, "\"");
    put_json(run, key, style, 0);
    put(run, "\"");
}

/* The index of the i-th member: in order, or by name. */
static size_t member(struct ds_jinja_run *run, const struct ds_jinja_dict *dict, size_t i,
                     bool sorted)
{
    size_t rank, j;

    if (!sorted)
        return i;
    for (j = 0; j < dict->n && ds_jinja_pay(run, dict->n); j++) {
        rank = 0;
        for (size_t k = 0; k < dict->n; k++)
            rank += ds_jinja_order(run, &dict->keys[k], &dict->keys[j]) < 0;
        if (rank == i)
            return j;
    }
    return i;
}

static void put_json_dict(struct ds_jinja_run *run, const struct ds_jinja_dict *dict,
                          const struct ds_jinja_json_style *style, unsigned depth)
{
    put(run, "{");
    for (size_t i = 0; i < dict->n && run->code == 0; i++) {
        size_t at = member(run, dict, i, style->sort_keys);

        if (i)
            ds_jinja_write(run, style->item_separator);
        put_break(run, style, depth + 1);
        put_json_key(run, &dict->keys[at], style);
        ds_jinja_write(run, style->key_separator);
        put_json(run, &dict->values[at], style, depth + 1);
    }
    if (dict->n)
        put_break(run, style, depth);
    put(run, "}");
}

static void put_json_float(struct ds_jinja_run *run, const struct ds_jinja_value *value)
{
    if (isnan(value->number))
        put(run, "NaN");
    else if (isinf(value->number) && !value->text.size)
        put(run, value->number > 0 ? "Infinity" : "-Infinity");
    else
        put_number(run, value);
}

static void put_json(struct ds_jinja_run *run, const struct ds_jinja_value *value,
                     const struct ds_jinja_json_style *style, unsigned depth)
{
    if (!ds_jinja_deeper(run))
        return;
    if (value->kind == DS_NONE)
        put(run, "null");
    else if (value->kind == DS_BOOL)
        put(run, value->truth ? "true" : "false");
    else if (value->kind == DS_INTEGER)
        put_number(run, value);
    else if (value->kind == DS_FLOAT)
        put_json_float(run, value);
    else if (value->kind == DS_STRING)
        put_json_string(run, value->text, style->ascii);
    else if (value->kind == DS_LIST || value->kind == DS_TUPLE)
        put_json_list(run, value->list, style, depth);
    else if (value->kind == DS_DICT)
        put_json_dict(run, value->dict, style, depth);
    else
        (void) ds_jinja_fail(run, -EBADMSG, "an object of type %s is not JSON serializable",
                             ds_jinja_kind_name(value));
    run->level--;
}

/* --- str() and repr() --- */

static void put_repr(struct ds_jinja_run *run, const struct ds_jinja_value *value);

static void put_repr_string(struct ds_jinja_run *run, struct ds_bytes text)
{
    bool single = memchr(text.data, '\'', text.size) && !memchr(text.data, '"', text.size);
    const char *quote = single ? "\"" : "'";
    char escape[8];

    put(run, quote);
    for (size_t i = 0; i < text.size && run->code == 0; i++) {
        char c = text.data[i];

        if (c == '\\' || c == *quote)
            (void) snprintf(escape, sizeof escape, "\\%c", c);
        else if (c == '\n' || c == '\r' || c == '\t')
            (void) snprintf(escape, sizeof escape, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if ((unsigned char) c < 0x20 || c == 0x7f)
            (void) snprintf(escape, sizeof escape, "\\x%02x", (unsigned char) c);
        else
            (void) snprintf(escape, sizeof escape, "%c", c);
        put(run, escape);
    }
    put(run, quote);
}

static void put_repr_items(struct ds_jinja_run *run, const struct ds_jinja_value *value)
{
    const struct ds_jinja_list *list = value->list;
    bool tuple = value->kind == DS_TUPLE;

    put(run, tuple ? "(" : "[");
    for (size_t i = 0; i < list->n && run->code == 0; i++) {
        put(run, i ? ", " : "");
        put_repr(run, &list->items[i]);
    }
    put(run, !tuple ? "]" : list->n == 1 ? ",)" : ")");
}

static void put_repr_members(struct ds_jinja_run *run, const struct ds_jinja_dict *dict)
{
    put(run, "{");
    for (size_t i = 0; i < dict->n && run->code == 0; i++) {
        put(run, i ? ", " : "");
        put_repr(run, &dict->keys[i]);
        put(run, ": ");
        put_repr(run, &dict->values[i]);
    }
    put(run, "}");
}

static void put_repr(struct ds_jinja_run *run, const struct ds_jinja_value *value)
{
    if (!ds_jinja_deeper(run))
        return;
    if (value->kind == DS_NONE)
        put(run, "None");
    else if (value->kind == DS_UNDEFINED)
        put(run, "Undefined");
    else if (value->kind == DS_BOOL)
        put(run, value->truth ? "True" : "False");
    else if (value->kind == DS_INTEGER || value->kind == DS_FLOAT)
        put_number(run, value);
    else if (value->kind == DS_STRING)
        put_repr_string(run, value->text);
    else if (value->kind == DS_LIST || value->kind == DS_TUPLE)
        put_repr_items(run, value);
    else if (value->kind == DS_DICT)
        put_repr_members(run, value->dict);
    else if (value->kind == DS_NAMESPACE)
        put(run, "<Namespace>");
    else
        put(run, value->kind == DS_LOOP ? "<LoopContext>" : "<function>");
    run->level--;
}

/* --- texts of their own --- */

static struct ds_bytes collect(struct ds_jinja_run *run, struct ds_jinja_text *text)
{
    struct ds_bytes result = ds_jinja_copy(run, (struct ds_bytes){ text->data, text->size });

    free(text->data);
    return result;
}

struct ds_bytes ds_jinja_to_json(struct ds_jinja_run *run, const struct ds_jinja_value *value,
                                 const struct ds_jinja_json_style *style)
{
    struct ds_jinja_text *outer = run->output, text = { 0 };

    run->output = &text;
    put_json(run, value, style, 0);
    run->output = outer;
    return collect(run, &text);
}

struct ds_bytes ds_jinja_str(struct ds_jinja_run *run, const struct ds_jinja_value *value)
{
    struct ds_jinja_text *outer = run->output, text = { 0 };

    if (value->kind == DS_STRING)
        return value->text;
    if (value->kind == DS_UNDEFINED)
        return (struct ds_bytes){ "", 0 };
    run->output = &text;
    put_repr(run, value);
    run->output = outer;
    return collect(run, &text);
}
