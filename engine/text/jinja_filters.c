/* SPDX-License-Identifier: Apache-2.0 */
/* Filters on single values; those on lists are in jinja_filters_list.c. */
#include <ctype.h>
#include <math.h>

#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

/* A string method on the filter's input, whatever that is as a string. */
static struct ds_jinja_value by_method(struct ds_jinja_run *run, struct ds_jinja_value self,
                                       const struct ds_jinja_arguments *arguments, const char *name)
{
    struct ds_jinja_value text = ds_jinja_string(ds_jinja_str(run, &self));

    for (unsigned i = 0; run->code == 0 && ds_jinja_string_methods[i].name; i++)
        if (strcmp(ds_jinja_string_methods[i].name, name) == 0)
            return ds_jinja_string_methods[i].call(run, text, arguments);
    return text;
}

static struct ds_jinja_value filter_trim(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    return by_method(run, self, arguments, "strip");
}

static struct ds_jinja_value filter_upper(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    return by_method(run, self, arguments, "upper");
}

static struct ds_jinja_value filter_lower(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    return by_method(run, self, arguments, "lower");
}

static struct ds_jinja_value filter_capitalize(struct ds_jinja_run *run, struct ds_jinja_value self,
                                               const struct ds_jinja_arguments *arguments)
{
    return by_method(run, self, arguments, "capitalize");
}

static struct ds_jinja_value filter_replace(struct ds_jinja_run *run, struct ds_jinja_value self,
                                            const struct ds_jinja_arguments *arguments)
{
    return by_method(run, self, arguments, "replace");
}

/* Unlike the method, words start only after blanks, hyphens and opening brackets. */
static struct ds_jinja_value filter_title(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes text = ds_jinja_str(run, &self);
    char *out = ds_jinja_memory(run, 2 * text.size + 4), *to = out;
    bool starts = true;

    (void) arguments;
    while (out && text.size) {
        size_t n = ds_utf8_first(text);
        unsigned code = ds_utf8_code(text.data, n);

        if (n == 1 && (*text.data & 0x80))
            *to++ = *text.data;
        else
            to += ds_utf8_put(starts ? ds_utf8_upper(code) : ds_utf8_lower(code), to);
        starts = ds_utf8_is_space(code) || (code < 0x80 && code && strchr("-({[<", (int) code));
        text.data += n;
        text.size -= n;
    }
    return ds_jinja_string((struct ds_bytes){ out ? out : "", (size_t) (to - out) });
}

static struct ds_jinja_value filter_string(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return ds_jinja_string(ds_jinja_str(run, &self));
}

static struct ds_jinja_value filter_length(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return ds_jinja_integer(ds_jinja_length(run, &self));
}

static struct ds_jinja_value filter_default(struct ds_jinja_run *run, struct ds_jinja_value self,
                                            const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value otherwise =
        ds_jinja_argument(arguments, 0, "default_value", ds_jinja_literal(""));
    struct ds_jinja_value falsy = ds_jinja_argument(arguments, 1, "boolean", ds_jinja_bool(false));

    (void) run;
    if (self.kind == DS_UNDEFINED || (ds_jinja_truth(&falsy) && !ds_jinja_truth(&self)))
        return otherwise;
    return self;
}

/* --- numbers --- */

/* The whole text as a number; false where it is none. */
static bool parse_number(struct ds_bytes text, double *ret_number)
{
    char digits[128], *end;
    size_t front = ds_utf8_space_front(text);

    text.data += front;
    text.size -= front;
    text.size -= ds_utf8_space_back(text);
    if (text.size == 0 || text.size >= sizeof digits || memchr(text.data, 'x', text.size) ||
        memchr(text.data, 'X', text.size))
        return false;
    memcpy(digits, text.data, text.size);
    digits[text.size] = '\0';
    *ret_number = strtod(digits, &end);
    return *end == '\0';
}

static struct ds_jinja_value integer_text(struct ds_bytes text, int base,
                                          struct ds_jinja_value missing)
{
    char digits[80], *end;
    double number;
    long long integer;

    if (text.size && text.size < sizeof digits) {
        memcpy(digits, text.data, text.size);
        digits[text.size] = '\0';
        errno = 0;
        integer = strtoll(digits, &end, base);
        end += strspn(end, " \t\r\n");
        if (*end == '\0' && end != digits && errno == 0)
            return ds_jinja_integer(integer);
    }
    if (parse_number(text, &number) && fabs(number) < 0x1p62)
        return ds_jinja_integer((int64_t) number);
    return missing;
}

static struct ds_jinja_value filter_int(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value missing = ds_jinja_argument(arguments, 0, "default", ds_jinja_integer(0));
    int64_t base = ds_jinja_argument_integer(run, arguments, 1, "base", 10);

    if (self.kind == DS_UNDEFINED)
        return ds_jinja_fail(run, -EBADMSG, "'%.*s' is undefined",
                             self.text.size > 80 ? 80 : (int) self.text.size, self.text.data);
    if (self.kind == DS_STRING)
        return integer_text(self.text, base >= 2 && base <= 36 ? (int) base : 10, missing);
    if (self.kind == DS_FLOAT)
        return fabs(self.number) < 0x1p62 ? ds_jinja_integer((int64_t) self.number) : missing;
    if (self.kind == DS_BOOL)
        return ds_jinja_integer(self.truth);
    return self.kind == DS_INTEGER ? self : missing;
}

static struct ds_jinja_value filter_float(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    double number;

    (void) run;
    if (ds_jinja_is_number(&self))
        return ds_jinja_float(ds_jinja_number(&self));
    if (self.kind == DS_STRING && parse_number(self.text, &number))
        return ds_jinja_float(number);
    return ds_jinja_argument(arguments, 0, "default", ds_jinja_float(0.0));
}

static struct ds_jinja_value filter_abs(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    if (self.kind == DS_BOOL)
        return ds_jinja_integer(self.truth);
    if (self.kind == DS_INTEGER && self.integer > INT64_MIN)
        return ds_jinja_integer(self.integer < 0 ? -self.integer : self.integer);
    if (self.kind == DS_FLOAT)
        return ds_jinja_float(fabs(self.number));
    return ds_jinja_fail(run, -EBADMSG, "abs wants a number, not %s", ds_jinja_kind_name(&self));
}

static struct ds_jinja_value filter_round(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    int64_t precision = ds_jinja_argument_integer(run, arguments, 0, "precision", 0);
    struct ds_bytes method = ds_jinja_argument_text(run, arguments, 1, "method", "common");
    double number, scale;
    char digits[400];

    if (!ds_jinja_is_number(&self))
        return ds_jinja_fail(run, -EBADMSG, "round wants a number, not %s",
                             ds_jinja_kind_name(&self));
    if (self.kind != DS_FLOAT && ds_jinja_is(method, "common"))
        return ds_jinja_integer(self.kind == DS_BOOL ? self.truth : self.integer);
    number = ds_jinja_number(&self);
    if (precision < 0 || precision > 30 || !isfinite(number))
        return self;
    scale = pow(10.0, (double) precision);
    if (ds_jinja_is(method, "ceil"))
        return ds_jinja_float(ceil(number * scale) / scale);
    if (ds_jinja_is(method, "floor"))
        return ds_jinja_float(floor(number * scale) / scale);
    (void) snprintf(digits, sizeof digits, "%.*f", (int) precision, number);
    return ds_jinja_float(strtod(digits, NULL));
}

/* --- text --- */

static struct ds_jinja_value filter_tojson(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value ascii =
        ds_jinja_argument(arguments, 0, "ensure_ascii", ds_jinja_bool(false));
    struct ds_jinja_value indent = ds_jinja_argument(arguments, 1, "indent", ds_jinja_none());
    struct ds_jinja_value separators =
        ds_jinja_argument(arguments, 2, "separators", ds_jinja_none());
    struct ds_jinja_value sorted =
        ds_jinja_argument(arguments, 3, "sort_keys", ds_jinja_bool(false));
    struct ds_jinja_json_style style = {
        .indent = indent.kind == DS_INTEGER ? indent.integer : -1,
        .item_separator = { ", ", indent.kind == DS_INTEGER ? 1 : 2 },
        .key_separator = { ": ", 2 },
        .ascii = ds_jinja_truth(&ascii),
        .sort_keys = ds_jinja_truth(&sorted),
    };

    if ((separators.kind == DS_TUPLE || separators.kind == DS_LIST) && separators.list->n == 2) {
        style.item_separator = ds_jinja_str(run, &separators.list->items[0]);
        style.key_separator = ds_jinja_str(run, &separators.list->items[1]);
    }
    if (style.indent > 64)
        return ds_jinja_fail(run, -EBADMSG, "tojson wants an indent of at most 64");
    return ds_jinja_string(ds_jinja_to_json(run, &self, &style));
}

static struct ds_jinja_value filter_escape(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    static const char from[] = "&<>'\"";
    static const char *const into[] = { "&amp;", "&lt;", "&gt;", "&#39;", "&#34;" };
    struct ds_bytes text = ds_jinja_str(run, &self), out = { "", 0 };

    (void) arguments;
    for (size_t i = 0, plain = 0; i <= text.size && run->code == 0; i++) {
        const char *special = i < text.size && text.data[i] ? strchr(from, text.data[i]) : NULL;

        if (!special && i < text.size)
            continue;
        out = ds_jinja_join(run, out, (struct ds_bytes){ text.data + plain, i - plain });
        if (special)
            out = ds_jinja_join(
                run, out, (struct ds_bytes){ into[special - from], strlen(into[special - from]) });
        plain = i + 1;
    }
    return ds_jinja_string(out);
}

static struct ds_jinja_value filter_safe(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    return filter_string(run, self, arguments);
}

static struct ds_jinja_value filter_indent(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes text = ds_jinja_str(run, &self), out = { "", 0 }, margin = { "", 0 };
    struct ds_jinja_value width = ds_jinja_argument(arguments, 0, "width", ds_jinja_integer(4));
    struct ds_jinja_value first = ds_jinja_argument(arguments, 1, "first", ds_jinja_bool(false));
    struct ds_jinja_value blank = ds_jinja_argument(arguments, 2, "blank", ds_jinja_bool(false));
    bool is_first = true;

    if (width.kind == DS_STRING)
        margin = width.text;
    for (int64_t i = 0; width.kind == DS_INTEGER && i < width.integer && run->code == 0; i++)
        margin = ds_jinja_join(run, margin, (struct ds_bytes){ " ", 1 });
    while (run->code == 0) {
        const char *newline = memchr(text.data, '\n', text.size);
        size_t size = newline ? (size_t) (newline - text.data) : text.size;

        if (is_first ? ds_jinja_truth(&first) : size || ds_jinja_truth(&blank))
            out = ds_jinja_join(run, out, margin);
        out = ds_jinja_join(run, out, (struct ds_bytes){ text.data, size + (newline != NULL) });
        if (!newline)
            break;
        text = (struct ds_bytes){ newline + 1, text.size - size - 1 };
        is_first = false;
    }
    return ds_jinja_string(out);
}

static struct ds_jinja_value filter_wordcount(struct ds_jinja_run *run, struct ds_jinja_value self,
                                              const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes text = ds_jinja_str(run, &self);
    int64_t words = 0;
    bool inside = false;

    (void) arguments;
    if (!ds_jinja_pay(run, text.size / 16))
        return ds_jinja_none();
    while (text.size) {
        size_t n = ds_utf8_first(text);
        unsigned code = ds_utf8_code(text.data, n);
        bool letter = ds_utf8_is_letter(code) || (code >= '0' && code <= '9') || code == '_';

        words += letter && !inside;
        inside = letter;
        text.data += n;
        text.size -= n;
    }
    return ds_jinja_integer(words);
}

/* --- printf --- */

/* One conversion; spec is its flags, width and precision. */
static struct ds_bytes convert(struct ds_jinja_run *run, const char *spec, char type,
                               const struct ds_jinja_value *value)
{
    char format[32], text[512];
    struct ds_bytes plain;

    if (type == 's' || type == 'r') {
        plain = ds_jinja_str(run, value);
        if (!*spec)
            return plain;
        (void) snprintf(format, sizeof format, "%%%s.*s", spec);
        if (strchr(spec, '.') || plain.size >= sizeof text) /* cutting text is left to slices */
            return plain;
        (void) snprintf(format, sizeof format, "%%%ss", spec);
        (void) snprintf(text, sizeof text, "%.*s", (int) plain.size, plain.data);
        plain = ds_jinja_copy(run, (struct ds_bytes){ text, strlen(text) });
        (void) snprintf(text, sizeof text, format, plain.size ? plain.data : "");
        return plain;
    }
    if (!ds_jinja_is_number(value)) {
        (void) ds_jinja_fail(run, -EBADMSG, "%%%c wants a number, not %s", type,
                             ds_jinja_kind_name(value));
        return (struct ds_bytes){ "", 0 };
    }
    if (strchr("dixX", type)) {
        (void) snprintf(format, sizeof format, "%%%sll%c", spec, type);
        (void) snprintf(text, sizeof text, format,
                        value->kind == DS_FLOAT
                            ? (long long) value->number
                            : (long long) (value->kind == DS_BOOL ? value->truth : value->integer));
    } else {
        (void) snprintf(format, sizeof format, "%%%s%c", spec, type);
        (void) snprintf(text, sizeof text, format, ds_jinja_number(value));
    }
    return ds_jinja_copy(run, (struct ds_bytes){ text, strlen(text) });
}

static struct ds_jinja_value filter_format(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes text = ds_jinja_str(run, &self), out = { "", 0 };
    const char *at = text.data, *end = text.data + text.size;
    size_t next = 0;
    char spec[8];

    while (at < end && run->code == 0) {
        const char *percent = memchr(at, '%', (size_t) (end - at));
        size_t n = 0;

        out = ds_jinja_join(run, out,
                            (struct ds_bytes){ at, (size_t) ((percent ? percent : end) - at) });
        if (!percent)
            break;
        for (at = percent + 1; at < end && *at && strchr("-+ 0123456789.", *at); at++) {
            if (n + 1 >= sizeof spec)
                return ds_jinja_fail(run, -EBADMSG, "a conversion is too long");
            spec[n++] = *at;
        }
        spec[n] = '\0';
        if (at >= end || !*at || !strchr("sdrixXfFgGeE%", *at) || n > 5)
            return ds_jinja_fail(run, -EBADMSG, "an unknown conversion");
        if (*at == '%')
            out = ds_jinja_join(run, out, (struct ds_bytes){ "%", 1 });
        else if (next >= arguments->n)
            return ds_jinja_fail(run, -EBADMSG, "not enough arguments for the format");
        else
            out = ds_jinja_join(run, out, convert(run, spec, *at, &arguments->values[next++]));
        at++;
    }
    if (run->code == 0 && next < arguments->n)
        return ds_jinja_fail(run, -EBADMSG, "more arguments than conversions in the format");
    return ds_jinja_string(out);
}

/* --- the table --- */

static const struct ds_jinja_entry filters[] = {
    { "trim", filter_trim },
    { "tojson", filter_tojson },
    { "length", filter_length },
    { "count", filter_length },
    { "default", filter_default },
    { "d", filter_default },
    { "upper", filter_upper },
    { "lower", filter_lower },
    { "capitalize", filter_capitalize },
    { "title", filter_title },
    { "replace", filter_replace },
    { "string", filter_string },
    { "safe", filter_safe },
    { "escape", filter_escape },
    { "e", filter_escape },
    { "int", filter_int },
    { "float", filter_float },
    { "abs", filter_abs },
    { "round", filter_round },
    { "indent", filter_indent },
    { "wordcount", filter_wordcount },
    { "format", filter_format },
    { NULL, NULL },
};

struct ds_jinja_value ds_jinja_filter(struct ds_jinja_run *run, struct ds_bytes name,
                                      struct ds_jinja_value input,
                                      const struct ds_jinja_arguments *arguments)
{
    const struct ds_jinja_entry *tables[] = { filters, ds_jinja_list_filters };

    for (unsigned t = 0; t < 2; t++)
        for (const struct ds_jinja_entry *entry = tables[t]; entry->name; entry++)
            if (ds_jinja_is(name, entry->name))
                return entry->call(run, input, arguments);
    return ds_jinja_fail(run, -EBADMSG, "no filter named '%.*s'",
                         name.size > 80 ? 80 : (int) name.size, name.data);
}
