/* SPDX-License-Identifier: Apache-2.0 */
/* Methods of strings, dictionaries, lists and loops, as Python has them; none changes its object.
 */
#include "engine/text/jinja_run.h"
#include "engine/text/jinja_utf8.h"

static struct ds_bytes cut(struct ds_bytes text, size_t front, size_t back)
{
    return (struct ds_bytes){ text.data + front, text.size - front - back };
}

/* --- strip --- */

/* Whether the n-byte character at c is one of set. */
static bool is_one_of(struct ds_bytes set, const char *c, size_t n)
{
    while (set.size) {
        size_t length = ds_utf8_first(set);

        if (length == n && memcmp(set.data, c, n) == 0)
            return true;
        set = cut(set, length, 0);
    }
    return false;
}

static struct ds_jinja_value strip(struct ds_jinja_run *run, struct ds_bytes text,
                                   const struct ds_jinja_arguments *arguments, bool front,
                                   bool back)
{
    struct ds_jinja_value chars = ds_jinja_argument(arguments, 0, "chars", ds_jinja_none());
    size_t n;

    if (!ds_jinja_pay(run, 1))
        return ds_jinja_none();
    if (chars.kind != DS_STRING) {
        if (front)
            text = cut(text, ds_utf8_space_front(text), 0);
        if (back)
            text = cut(text, 0, ds_utf8_space_back(text));
        return ds_jinja_string(text);
    }
    while (front && (n = ds_utf8_first(text)) && is_one_of(chars.text, text.data, n) &&
           ds_jinja_pay(run, 1 + chars.text.size / 8))
        text = cut(text, n, 0);
    while (back && (n = ds_utf8_last(text)) &&
           is_one_of(chars.text, text.data + text.size - n, n) &&
           ds_jinja_pay(run, 1 + chars.text.size / 8))
        text = cut(text, 0, n);
    return ds_jinja_string(text);
}

static struct ds_jinja_value call_strip(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    return strip(run, self.text, arguments, true, true);
}

static struct ds_jinja_value call_lstrip(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    return strip(run, self.text, arguments, true, false);
}

static struct ds_jinja_value call_rstrip(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    return strip(run, self.text, arguments, false, true);
}

/* --- split --- */

/* The next or last place of what in text; NULL: none. Looking for the last one compares at each
 * place, and pays for it. */
static const char *find(struct ds_jinja_run *run, struct ds_bytes text, struct ds_bytes what,
                        bool last)
{
    if (!ds_jinja_pay(run, last ? text.size / 16 * (1 + what.size / 16) : text.size / 4096))
        return NULL;
    if (!last)
        return memmem(text.data, text.size, what.data, what.size);
    for (size_t left = text.size + 1; left > what.size; left--)
        if (memcmp(text.data + left - 1 - what.size, what.data, what.size) == 0)
            return text.data + left - 1 - what.size;
    return NULL;
}

static void reverse(struct ds_jinja_value list)
{
    for (size_t i = 0; list.list && i < list.list->n / 2; i++) {
        struct ds_jinja_value item = list.list->items[i];

        list.list->items[i] = list.list->items[list.list->n - 1 - i];
        list.list->items[list.list->n - 1 - i] = item;
    }
}

/* Bytes up to the next white space, seen from the front or the back. */
static size_t word_length(struct ds_bytes text, bool from_back)
{
    size_t at = 0, n;

    while (at < text.size) {
        struct ds_bytes rest = from_back ? cut(text, 0, at) : cut(text, at, 0);

        n = from_back ? ds_utf8_last(rest) : ds_utf8_first(rest);
        if (ds_utf8_is_space(ds_utf8_code(from_back ? rest.data + rest.size - n : rest.data, n)))
            break;
        at += n;
    }
    return at;
}

static struct ds_jinja_value split_words(struct ds_jinja_run *run, struct ds_bytes text,
                                         int64_t most, bool from_back)
{
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);

    if (!ds_jinja_pay(run, text.size / 16))
        return list;
    while (run->code == 0) {
        size_t n;

        text = from_back ? cut(text, 0, ds_utf8_space_back(text))
                         : cut(text, ds_utf8_space_front(text), 0);
        if (text.size == 0)
            break;
        if (most-- == 0) { /* the rest as it is */
            ds_jinja_push(run, list, ds_jinja_string(text));
            break;
        }
        n = word_length(text, from_back);
        ds_jinja_push(run, list,
                      ds_jinja_string(from_back ? cut(text, text.size - n, 0)
                                                : (struct ds_bytes){ text.data, n }));
        text = from_back ? cut(text, 0, n) : cut(text, n, 0);
    }
    if (from_back)
        reverse(list);
    return list;
}

static struct ds_jinja_value split(struct ds_jinja_run *run, struct ds_bytes text,
                                   const struct ds_jinja_arguments *arguments, bool from_back)
{
    struct ds_jinja_value by = ds_jinja_argument(arguments, 0, "sep", ds_jinja_none()), list;
    int64_t most = ds_jinja_argument_integer(run, arguments, 1, "maxsplit", -1);
    const char *at;

    if (by.kind == DS_NONE)
        return split_words(run, text, most, from_back);
    if (by.kind != DS_STRING || by.text.size == 0)
        return ds_jinja_fail(run, -EBADMSG, "split() wants a separator that is not empty");
    list = ds_jinja_list(run, DS_LIST);
    while (ds_jinja_pay(run, 1) && most-- != 0 && (at = find(run, text, by.text, from_back))) {
        size_t front = (size_t) (at - text.data);

        if (from_back) {
            ds_jinja_push(run, list, ds_jinja_string(cut(text, front + by.text.size, 0)));
            text.size = front;
        } else {
            ds_jinja_push(run, list, ds_jinja_string((struct ds_bytes){ text.data, front }));
            text = cut(text, front + by.text.size, 0);
        }
    }
    ds_jinja_push(run, list, ds_jinja_string(text));
    if (from_back)
        reverse(list);
    return list;
}

static struct ds_jinja_value call_split(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    return split(run, self.text, arguments, false);
}

static struct ds_jinja_value call_rsplit(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    return split(run, self.text, arguments, true);
}

static struct ds_jinja_value call_splitlines(struct ds_jinja_run *run, struct ds_jinja_value self,
                                             const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value keep = ds_jinja_argument(arguments, 0, "keepends", ds_jinja_bool(false));
    struct ds_jinja_value list = ds_jinja_list(run, DS_LIST);
    struct ds_bytes text = self.text;

    while (text.size && run->code == 0) {
        size_t n = 0, end;

        while (n < text.size && text.data[n] != '\n' && text.data[n] != '\r')
            n++;
        end = n + (n < text.size);
        if (n + 1 < text.size && text.data[n] == '\r' && text.data[n + 1] == '\n')
            end++;
        ds_jinja_push(
            run, list,
            ds_jinja_string((struct ds_bytes){ text.data, ds_jinja_truth(&keep) ? end : n }));
        text = cut(text, end, 0);
    }
    return list;
}

/* --- looking --- */

static bool is_at(struct ds_bytes text, struct ds_bytes what, bool end)
{
    return what.size <= text.size &&
           (what.size == 0 ||
            memcmp(text.data + (end ? text.size - what.size : 0), what.data, what.size) == 0);
}

static struct ds_jinja_value starts_or_ends(struct ds_jinja_run *run, struct ds_bytes text,
                                            const struct ds_jinja_arguments *arguments, bool end)
{
    struct ds_jinja_value what = ds_jinja_argument(arguments, 0, "prefix", ds_jinja_none());

    if (what.kind == DS_STRING)
        return ds_jinja_bool(is_at(text, what.text, end));
    if (what.kind != DS_TUPLE)
        return ds_jinja_fail(run, -EBADMSG, "%s() wants a string, not %s",
                             end ? "endswith" : "startswith", ds_jinja_kind_name(&what));
    for (size_t i = 0; i < what.list->n && ds_jinja_pay(run, 1); i++)
        if (what.list->items[i].kind == DS_STRING && is_at(text, what.list->items[i].text, end))
            return ds_jinja_bool(true);
    return ds_jinja_bool(false);
}

static struct ds_jinja_value call_startswith(struct ds_jinja_run *run, struct ds_jinja_value self,
                                             const struct ds_jinja_arguments *arguments)
{
    return starts_or_ends(run, self.text, arguments, false);
}

static struct ds_jinja_value call_endswith(struct ds_jinja_run *run, struct ds_jinja_value self,
                                           const struct ds_jinja_arguments *arguments)
{
    return starts_or_ends(run, self.text, arguments, true);
}

/* Index in characters of what, -1: not there. */
static struct ds_jinja_value index_of(struct ds_jinja_run *run, struct ds_bytes text,
                                      const struct ds_jinja_arguments *arguments, bool last)
{
    struct ds_bytes what = ds_jinja_argument_text(run, arguments, 0, "sub", "");
    const char *at = ds_jinja_pay(run, text.size / 16) ? find(run, text, what, last) : NULL;

    if (!at)
        return ds_jinja_integer(-1);
    return ds_jinja_integer(
        (int64_t) ds_utf8_count((struct ds_bytes){ text.data, (size_t) (at - text.data) }));
}

static struct ds_jinja_value call_find(struct ds_jinja_run *run, struct ds_jinja_value self,
                                       const struct ds_jinja_arguments *arguments)
{
    return index_of(run, self.text, arguments, false);
}

static struct ds_jinja_value call_rfind(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    return index_of(run, self.text, arguments, true);
}

static struct ds_jinja_value call_index(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value at = index_of(run, self.text, arguments, false);

    if (run->code == 0 && at.integer < 0)
        return ds_jinja_fail(run, -EBADMSG, "index(): substring not found");
    return at;
}

static struct ds_jinja_value call_count(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes what = ds_jinja_argument_text(run, arguments, 0, "sub", ""), text = self.text;
    const char *at;
    int64_t n = 0;

    if (what.size == 0)
        return ds_jinja_integer(ds_jinja_length(run, &self) + 1);
    while (ds_jinja_pay(run, 1) && (at = find(run, text, what, false))) {
        text = cut(text, (size_t) (at - text.data) + what.size, 0);
        n++;
    }
    return ds_jinja_integer(n);
}

/* Every character is of the class, and there is one. */
static struct ds_jinja_value all_are(struct ds_jinja_run *run, struct ds_bytes text, bool digits,
                                     bool letters, bool spaces)
{
    bool all = text.size > 0;

    if (!ds_jinja_pay(run, text.size / 16))
        return ds_jinja_none();
    while (all && text.size) {
        size_t n = ds_utf8_first(text);
        unsigned code = ds_utf8_code(text.data, n);

        all = (digits && code >= '0' && code <= '9') || (letters && ds_utf8_is_letter(code)) ||
              (spaces && ds_utf8_is_space(code));
        text = cut(text, n, 0);
    }
    return ds_jinja_bool(all);
}

static struct ds_jinja_value call_isdigit(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return all_are(run, self.text, true, false, false);
}

static struct ds_jinja_value call_isalpha(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return all_are(run, self.text, false, true, false);
}

static struct ds_jinja_value call_isalnum(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return all_are(run, self.text, true, true, false);
}

static struct ds_jinja_value call_isspace(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return all_are(run, self.text, false, false, true);
}

/* --- changing --- */

enum letter_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALISE };

static struct ds_jinja_value change_case(struct ds_jinja_run *run, struct ds_bytes text,
                                         enum letter_case wanted)
{
    char *out = ds_jinja_memory(run, 2 * text.size + 4), *to = out;
    bool starts = true;

    while (out && text.size) {
        size_t n = ds_utf8_first(text);
        unsigned code = ds_utf8_code(text.data, n);
        bool upper = wanted == CASE_UPPER || (wanted != CASE_LOWER && starts);

        if (n == 1 && (*text.data & 0x80))
            *to++ = *text.data;
        else if (code == 0xdf && upper) /* the one letter of these scripts that becomes two */
            to += sprintf(to, wanted == CASE_UPPER ? "SS" : "Ss");
        else
            to += ds_utf8_put(upper ? ds_utf8_upper(code) : ds_utf8_lower(code), to);
        starts = wanted == CASE_TITLE && !ds_utf8_is_letter(code);
        text = cut(text, n, 0);
    }
    return ds_jinja_string((struct ds_bytes){ out ? out : "", (size_t) (to - out) });
}

static struct ds_jinja_value call_upper(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return change_case(run, self.text, CASE_UPPER);
}

static struct ds_jinja_value call_lower(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return change_case(run, self.text, CASE_LOWER);
}

static struct ds_jinja_value call_title(struct ds_jinja_run *run, struct ds_jinja_value self,
                                        const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return change_case(run, self.text, CASE_TITLE);
}

static struct ds_jinja_value call_capitalize(struct ds_jinja_run *run, struct ds_jinja_value self,
                                             const struct ds_jinja_arguments *arguments)
{
    (void) arguments;
    return change_case(run, self.text, CASE_CAPITALISE);
}

static struct ds_jinja_value call_replace(struct ds_jinja_run *run, struct ds_jinja_value self,
                                          const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes old = ds_jinja_argument_text(run, arguments, 0, "old", "");
    struct ds_bytes new = ds_jinja_argument_text(run, arguments, 1, "new", "");
    struct ds_jinja_value count = ds_jinja_argument(arguments, 2, "count", ds_jinja_integer(-1));
    int64_t most = count.kind == DS_INTEGER ? count.integer : -1;
    struct ds_bytes text = self.text, out = { "", 0 };
    const char *at;

    while (most-- != 0 && ds_jinja_pay(run, 1)) {
        size_t front;

        at = old.size ? find(run, text, old, false)
                      : text.data; /* "" stands before each character */
        if (!at || (old.size == 0 && text.size == 0))
            break;
        front = (size_t) (at - text.data);
        out = ds_jinja_join(run, out, (struct ds_bytes){ text.data, front });
        out = ds_jinja_join(run, out, new);
        if (old.size == 0) {
            front = ds_utf8_first(text);
            out = ds_jinja_join(run, out, (struct ds_bytes){ text.data, front });
        }
        text = cut(text, front + old.size, 0);
    }
    out = ds_jinja_join(run, out, text);
    if (old.size == 0 && most != -1 && text.size == 0)
        out = ds_jinja_join(run, out, new);
    return ds_jinja_string(out);
}

static struct ds_jinja_value call_join(struct ds_jinja_run *run, struct ds_jinja_value self,
                                       const struct ds_jinja_arguments *arguments)
{
    struct ds_jinja_value list = ds_jinja_argument(arguments, 0, "iterable", ds_jinja_none());
    struct ds_jinja_arguments separator = { .values = &self, .n = 1 };

    return ds_jinja_filter(run, (struct ds_bytes){ "join", 4 }, list, &separator);
}

static struct ds_jinja_value call_removeprefix(struct ds_jinja_run *run, struct ds_jinja_value self,
                                               const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes what = ds_jinja_argument_text(run, arguments, 0, "prefix", "");

    return ds_jinja_string(is_at(self.text, what, false) ? cut(self.text, what.size, 0)
                                                         : self.text);
}

static struct ds_jinja_value call_removesuffix(struct ds_jinja_run *run, struct ds_jinja_value self,
                                               const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes what = ds_jinja_argument_text(run, arguments, 0, "suffix", "");

    return ds_jinja_string(is_at(self.text, what, true) ? cut(self.text, 0, what.size) : self.text);
}

static struct ds_jinja_value partition(struct ds_jinja_run *run, struct ds_bytes text,
                                       const struct ds_jinja_arguments *arguments, bool last)
{
    struct ds_bytes by = ds_jinja_argument_text(run, arguments, 0, "sep", "");
    struct ds_jinja_value list = ds_jinja_list(run, DS_TUPLE), none = ds_jinja_literal("");
    const char *at =
        by.size && ds_jinja_pay(run, text.size / 16) ? find(run, text, by, last) : NULL;
    size_t front = at ? (size_t) (at - text.data) : 0;

    if (!at) {
        ds_jinja_push(run, list, last ? none : ds_jinja_string(text));
        ds_jinja_push(run, list, none);
        ds_jinja_push(run, list, last ? ds_jinja_string(text) : none);
        return list;
    }
    ds_jinja_push(run, list, ds_jinja_string((struct ds_bytes){ text.data, front }));
    ds_jinja_push(run, list, ds_jinja_string(by));
    ds_jinja_push(run, list, ds_jinja_string(cut(text, front + by.size, 0)));
    return list;
}

static struct ds_jinja_value call_partition(struct ds_jinja_run *run, struct ds_jinja_value self,
                                            const struct ds_jinja_arguments *arguments)
{
    return partition(run, self.text, arguments, false);
}

static struct ds_jinja_value call_rpartition(struct ds_jinja_run *run, struct ds_jinja_value self,
                                             const struct ds_jinja_arguments *arguments)
{
    return partition(run, self.text, arguments, true);
}

/* "{} and {name}": replacement fields without conversions. */
static struct ds_jinja_value call_format(struct ds_jinja_run *run, struct ds_jinja_value self,
                                         const struct ds_jinja_arguments *arguments)
{
    struct ds_bytes text = self.text, out = { "", 0 };
    size_t next = 0, n;

    while (text.size && run->code == 0) {
        struct ds_jinja_value value = ds_jinja_undefined((struct ds_bytes){ "", 0 });
        bool brace = *text.data == '{' || *text.data == '}';
        char name[64];

        for (n = 0; !brace && n < text.size && text.data[n] != '{' && text.data[n] != '}';)
            n++;
        if (brace && text.size > 1 && text.data[1] == *text.data)
            n = 1;
        out = ds_jinja_join(run, out, (struct ds_bytes){ text.data, n });
        text = cut(text, brace && n ? 2 : n, 0);
        if (!brace || n)
            continue;
        while (n < text.size && text.data[n] != '}')
            n++;
        if (*text.data != '{' || n == text.size || n >= sizeof name)
            return ds_jinja_fail(run, -EBADMSG, "format(): a brace has no partner");
        (void) snprintf(name, sizeof name, "%.*s", (int) n - 1, text.data + 1);
        if (n == 1 || (*name >= '0' && *name <= '9'))
            value = ds_jinja_argument(arguments, n == 1 ? next++ : strtoul(name, NULL, 10), NULL,
                                      value);
        else
            value = ds_jinja_argument(arguments, arguments->n, name, value);
        if (value.kind == DS_UNDEFINED)
            return ds_jinja_fail(run, -EBADMSG, "format(): no argument for '{%s}'", name);
        out = ds_jinja_join(run, out, ds_jinja_str(run, &value));
        text = cut(text, n + 1, 0);
    }
    return ds_jinja_string(out);
}

const struct ds_jinja_entry ds_jinja_string_methods[] = {
    { "strip", call_strip },
    { "lstrip", call_lstrip },
    { "rstrip", call_rstrip },
    { "split", call_split },
    { "rsplit", call_rsplit },
    { "splitlines", call_splitlines },
    { "startswith", call_startswith },
    { "endswith", call_endswith },
    { "find", call_find },
    { "rfind", call_rfind },
    { "index", call_index },
    { "count", call_count },
    { "isdigit", call_isdigit },
    { "isnumeric", call_isdigit },
    { "isalpha", call_isalpha },
    { "isalnum", call_isalnum },
    { "isspace", call_isspace },
    { "upper", call_upper },
    { "lower", call_lower },
    { "title", call_title },
    { "capitalize", call_capitalize },
    { "replace", call_replace },
    { "join", call_join },
    { "removeprefix", call_removeprefix },
    { "removesuffix", call_removesuffix },
    { "partition", call_partition },
    { "rpartition", call_rpartition },
    { "format", call_format },
    { NULL, NULL },
};
