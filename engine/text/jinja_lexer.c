/* SPDX-License-Identifier: Apache-2.0 */
/* White space follows Jinja's lexer with trim_blocks and lstrip_blocks on: a newline right after a
 * block or comment goes, so do blanks between the start of a line and a block or comment; '-' on
 * either side takes all white space there, '+' keeps it; one newline at the template's end goes. */
#include <ctype.h>

#include "engine/text/jinja.h"
#include "engine/text/jinja_utf8.h"

struct lexer {
    struct ds_arena *arena;
    const char *at, *end;
    struct ds_jinja_token *tokens;
    size_t n, room;
    unsigned line;
    bool line_starting; /* what was consumed last ended with a newline, or nothing was */
    int code;
    struct ds_error *error;
};

static void fail(struct lexer *lexer, const char *what)
{
    if (lexer->code == 0)
        lexer->code =
            ds_error_set(lexer->error, -EBADMSG, "chat template, line %u: %s", lexer->line, what);
}

static struct ds_jinja_token *add(struct lexer *lexer, enum ds_jinja_token_kind kind,
                                  const char *text, size_t size)
{
    struct ds_jinja_token *token;

    if (lexer->n == lexer->room) {
        size_t room = lexer->room ? 2 * lexer->room : 256;
        struct ds_jinja_token *grown = ds_arena_alloc(lexer->arena, room * sizeof *grown);

        if (!grown) {
            fail(lexer, "too long");
            return NULL;
        }
        if (lexer->n)
            memcpy(grown, lexer->tokens, lexer->n * sizeof *grown);
        lexer->tokens = grown;
        lexer->room = room;
    }
    token = &lexer->tokens[lexer->n++];
    *token = (struct ds_jinja_token){ .kind = kind, .line = lexer->line, .text = { text, size } };
    return token;
}

static void advance(struct lexer *lexer, const char *to)
{
    for (; lexer->at < to; lexer->at++)
        lexer->line += *lexer->at == '\n';
}

static bool starts(const struct lexer *lexer, const char *at, const char *with)
{
    size_t size = strlen(with);

    return (size_t) (lexer->end - at) >= size && memcmp(at, with, size) == 0;
}

static const char *skip_space(const struct lexer *lexer, const char *at)
{
    return at + ds_utf8_space_front((struct ds_bytes){ at, (size_t) (lexer->end - at) });
}

/* --- text between tags --- */

/* Adds the text from lexer->at to end, cut as the tag that follows it wants; sign is the character
 * after that tag's opening brackets. */
static void add_text(struct lexer *lexer, const char *end, char sign, bool is_print)
{
    struct ds_bytes text = { lexer->at, (size_t) (end - lexer->at) };
    const char *line_start;

    if (sign == '-') {
        text.size -= ds_utf8_space_back(text);
    } else if (sign != '+' && !is_print) {
        for (line_start = end; line_start > text.data && line_start[-1] != '\n'; line_start--)
            ;
        if ((line_start > text.data || lexer->line_starting) &&
            skip_space(lexer, line_start) >= end)
            text.size = (size_t) (line_start - text.data);
    }
    if (text.size)
        (void) add(lexer, DS_JINJA_TEXT, text.data, text.size);
    advance(lexer, end);
}

/* Steps over closing brackets of two characters whose sign stood before them. */
static void close_tag(struct lexer *lexer, char sign, bool trims)
{
    const char *to = lexer->at + 2;

    if (sign == '-')
        to = skip_space(lexer, to);
    else if (trims && sign != '+' && to < lexer->end && *to == '\n')
        to++;
    lexer->line_starting = to[-1] == '\n';
    advance(lexer, to);
}

static void lex_comment(struct lexer *lexer)
{
    const char *close = memmem(lexer->at + 2, (size_t) (lexer->end - lexer->at - 2), "#}", 2);
    char sign;

    if (!close) {
        fail(lexer, "a comment {# has no end #}");
        return;
    }
    sign = close > lexer->at + 2 ? close[-1] : '\0';
    advance(lexer, close);
    close_tag(lexer, sign, true);
}

/* If the block tag at `at` holds just this word: its closing brackets, and their sign. */
static const char *lone_word(const struct lexer *lexer, const char *at, const char *word,
                             char *ret_sign)
{
    at += 2;
    if (at < lexer->end && (*at == '-' || *at == '+'))
        at++;
    at = skip_space(lexer, at);
    if (!starts(lexer, at, word))
        return NULL;
    at = skip_space(lexer, at + strlen(word));
    *ret_sign = '\0';
    if (at < lexer->end && (*at == '-' || *at == '+'))
        *ret_sign = *at++;
    return starts(lexer, at, "%}") ? at : NULL;
}

static void lex_raw(struct lexer *lexer, const char *close, char sign)
{
    advance(lexer, close);
    close_tag(lexer, sign, false);
    for (const char *at = lexer->at; lexer->end - at >= 2; at++) {
        if (!starts(lexer, at, "{%"))
            continue;
        close = lone_word(lexer, at, "endraw", &sign);
        if (!close)
            continue;
        add_text(lexer, at, at[2], false);
        advance(lexer, close);
        close_tag(lexer, sign, true);
        return;
    }
    fail(lexer, "{% raw %} has no {% endraw %}");
}

/* --- inside tags --- */

/* One escape as Python reads it; at stands after the backslash. Never longer than its source. */
static const char *lex_escape(const char *at, const char *end, char **to)
{
    static const char from[] = "abfnrtv\\'\"", into[] = "\a\b\f\n\r\t\v\\'\"";
    const char *simple = *at ? strchr(from, *at) : NULL;
    unsigned digits = *at == 'x' ? 2 : *at == 'u' ? 4 : *at == 'U' ? 8 : 0, code = 0, i;

    if (simple) {
        *(*to)++ = into[simple - from];
        return at + 1;
    }
    if (*at == '\n')
        return at + 1;
    if (*at >= '0' && *at <= '7') {
        for (i = 0; i < 3 && at < end && *at >= '0' && *at <= '7'; i++)
            code = code * 8 + (unsigned) (*at++ - '0');
        *to += ds_utf8_put(code, *to);
        return at;
    }
    for (i = 0; i < digits && at + 1 + i < end && isxdigit((unsigned char) at[1 + i]); i++)
        code = code * 16 +
               (unsigned) (at[1 + i] <= '9' ? at[1 + i] - '0' : (at[1 + i] | 32) - 'a' + 10);
    if (digits && i == digits) {
        *to += ds_utf8_put(code, *to);
        return at + 1 + digits;
    }
    *(*to)++ = '\\';
    return at;
}

static void lex_string(struct lexer *lexer)
{
    char quote = *lexer->at;
    const char *at = lexer->at + 1;
    char *decoded, *to;

    while (at < lexer->end && *at != quote)
        at += *at == '\\' ? 2 : 1;
    if (at >= lexer->end) {
        fail(lexer, "a string has no end");
        return;
    }
    decoded = to = ds_arena_text(lexer->arena, (size_t) (at - lexer->at) + 4);
    if (!decoded) {
        fail(lexer, "too long");
        return;
    }
    for (const char *p = lexer->at + 1; p < at;) {
        if (*p == '\\')
            p = lex_escape(p + 1, at, &to);
        else
            *to++ = *p++;
    }
    (void) add(lexer, DS_JINJA_STRING, decoded, (size_t) (to - decoded));
    advance(lexer, at + 1);
}

static bool is_digit_at(const struct lexer *lexer, const char *at)
{
    return at < lexer->end && isdigit((unsigned char) *at);
}

/* Digits without their underscores; a number after a dot is an index and takes digits only. */
static void lex_number(struct lexer *lexer, bool is_index)
{
    struct ds_jinja_token *token;
    char digits[80];
    const char *at = lexer->at;
    bool is_float = false, has_exponent = false;
    size_t n = 0;

    for (; at < lexer->end && n < 64; at++) {
        bool dot = *at == '.' && !is_float && !is_index && is_digit_at(lexer, at + 1);
        bool sign = at + 1 < lexer->end && (at[1] == '-' || at[1] == '+');
        bool exponent = (*at | 32) == 'e' && !has_exponent && !is_index &&
                        is_digit_at(lexer, at + (sign ? 2 : 1));

        if (*at == '_' && !is_index)
            continue;
        if (!is_digit_at(lexer, at) && !dot && !exponent)
            break;
        is_float |= dot || exponent;
        has_exponent |= exponent;
        digits[n++] = *at;
        if (exponent && sign)
            digits[n++] = *++at;
    }
    digits[n] = '\0';
    token = add(lexer, is_float ? DS_JINJA_FLOAT : DS_JINJA_INTEGER, lexer->at,
                (size_t) (at - lexer->at));
    errno = 0;
    if (token && is_float)
        token->number = strtod(digits, NULL);
    else if (token)
        token->integer = strtoll(digits, NULL, 10);
    if (errno == ERANGE || n >= 64)
        fail(lexer, "a number is too large");
    advance(lexer, at);
}

static bool is_name_byte(char c, bool first)
{
    return c == '_' || (c & 0x80) || isalpha((unsigned char) c) ||
           (!first && isdigit((unsigned char) c));
}

static void lex_operator(struct lexer *lexer)
{
    static const char *const operators[] = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", NULL,
    };

    for (unsigned i = 0; operators[i]; i++)
        if (starts(lexer, lexer->at, operators[i])) {
            (void) add(lexer, DS_JINJA_OPERATOR, operators[i], strlen(operators[i]));
            advance(lexer, lexer->at + strlen(operators[i]));
            return;
        }
    fail(lexer, "an unexpected character in a tag");
}

/* Width of the closing brackets at lexer->at with their sign; 0: something else is there. */
static unsigned tag_end(const struct lexer *lexer, bool is_print)
{
    const char *brackets = is_print ? "}}" : "%}";

    if (starts(lexer, lexer->at, brackets))
        return 2;
    if ((*lexer->at == '-' || (*lexer->at == '+' && !is_print)) &&
        starts(lexer, lexer->at + 1, brackets))
        return 3;
    return 0;
}

static void lex_token(struct lexer *lexer)
{
    const char *at = lexer->at;
    const struct ds_jinja_token *last = &lexer->tokens[lexer->n - 1];
    bool after_dot = last->kind == DS_JINJA_OPERATOR && *last->text.data == '.';

    if (*at == '"' || *at == '\'') {
        lex_string(lexer);
    } else if (isdigit((unsigned char) *at)) {
        lex_number(lexer, after_dot);
    } else if (is_name_byte(*at, true)) {
        while (at < lexer->end && is_name_byte(*at, false))
            at++;
        (void) add(lexer, DS_JINJA_NAME, lexer->at, (size_t) (at - lexer->at));
        advance(lexer, at);
    } else {
        lex_operator(lexer);
    }
}

/* The tokens between a tag's brackets; width of the closing ones, 0 = failed. Within brackets of an
 * expression `}}` closes two dictionaries. */
static unsigned lex_inside(struct lexer *lexer, bool is_print)
{
    unsigned open = 0, width;

    while (lexer->code == 0) {
        advance(lexer, skip_space(lexer, lexer->at));
        if (lexer->at >= lexer->end) {
            fail(lexer, "a tag has no end");
            return 0;
        }
        width = open ? 0 : tag_end(lexer, is_print);
        if (width)
            return width;
        lex_token(lexer);
        if (lexer->code == 0 && lexer->tokens[lexer->n - 1].kind == DS_JINJA_OPERATOR) {
            char c = *lexer->tokens[lexer->n - 1].text.data;

            open += c == '(' || c == '[' || c == '{';
            open -= open > 0 && (c == ')' || c == ']' || c == '}');
        }
    }
    return 0;
}

static void lex_tag(struct lexer *lexer, bool is_print)
{
    unsigned width;
    char sign;

    if (!add(lexer, is_print ? DS_JINJA_PRINT_BEGIN : DS_JINJA_BLOCK_BEGIN, lexer->at, 2))
        return;
    advance(lexer, lexer->at + 2);
    if (lexer->at < lexer->end && (*lexer->at == '-' || *lexer->at == '+'))
        advance(lexer, lexer->at + 1);
    width = lex_inside(lexer, is_print);
    if (width == 0)
        return;
    sign = width == 3 ? *lexer->at : '\0';
    (void) add(lexer, is_print ? DS_JINJA_PRINT_END : DS_JINJA_BLOCK_END, lexer->at, width);
    advance(lexer, lexer->at + width - 2);
    close_tag(lexer, sign, !is_print);
}

/* --- all --- */

static const char *find_tag(const struct lexer *lexer)
{
    for (const char *at = lexer->at; lexer->end - at >= 2; at++)
        if (*at == '{' && (at[1] == '{' || at[1] == '%' || at[1] == '#'))
            return at;
    return NULL;
}

/* Newlines of any kind become \n; the last one goes. */
static struct ds_bytes normalise(struct ds_arena *arena, struct ds_bytes source)
{
    char *copy = ds_arena_text(arena, source.size + 1), *to = copy;

    if (!copy)
        return (struct ds_bytes){ NULL, 0 };
    for (size_t i = 0; i < source.size; i++) {
        if (source.data[i] == '\r' && i + 1 < source.size && source.data[i + 1] == '\n')
            continue;
        *to++ = source.data[i] == '\r' ? '\n' : source.data[i];
    }
    if (to > copy && to[-1] == '\n')
        to--;
    return (struct ds_bytes){ copy, (size_t) (to - copy) };
}

struct ds_jinja_token *ds_jinja_lex(struct ds_arena *arena, struct ds_bytes source, int *ret_code,
                                    struct ds_error *error)
{
    struct lexer lexer = { .arena = arena, .line = 1, .line_starting = true, .error = error };
    struct ds_bytes text = normalise(arena, source);
    const char *tag, *close;
    char sign;

    lexer.at = text.data;
    lexer.end = text.data + text.size;
    if (!text.data)
        fail(&lexer, "no memory");
    while (lexer.code == 0 && (tag = find_tag(&lexer))) {
        bool is_print = tag[1] == '{';

        add_text(&lexer, tag, tag + 2 < lexer.end ? tag[2] : '\0', is_print);
        close = tag[1] == '%' ? lone_word(&lexer, tag, "raw", &sign) : NULL;
        if (close)
            lex_raw(&lexer, close, sign);
        else if (tag[1] == '#')
            lex_comment(&lexer);
        else
            lex_tag(&lexer, is_print);
    }
    if (lexer.code == 0 && lexer.at < lexer.end)
        (void) add(&lexer, DS_JINJA_TEXT, lexer.at, (size_t) (lexer.end - lexer.at));
    (void) add(&lexer, DS_JINJA_END, "", 0);
    if (lexer.code < 0)
        *ret_code = arena->code == -ENOMEM ? -ENOMEM : lexer.code;
    return lexer.code < 0 ? NULL : lexer.tokens;
}
