/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Goal: chat templates give what Jinja gives, to the byte, and a hostile one costs a bounded amount
 * of time and memory and one error line. Method: small templates for each feature with the text
 * that Jinja 3.1 (trim_blocks, lstrip_blocks) makes of them; templates that loop, nest and repeat
 * without end; every golden render where the golden data is there.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <cjson/cJSON.h>

#include "engine/text/template.h"
#include "tests/lib/golden.h"

static struct ds_bytes bytes(const char *text)
{
    return (struct ds_bytes){ text, strlen(text) };
}

/* Variables that the small cases use. */
static const char variables[] =
    "{\"x\":[3,1,2],\"s\":\"Hello World\",\"n\":5,\"f\":1.5,\"no\":null,\"yes\":true,\"e\":[],"
    "\"d\":{\"b\":1,\"a\":2,\"C\":[1,{\"k\":\"v\"}]},\"big\":12345678901234567890123,"
    "\"users\":[{\"name\":\"bob\",\"age\":3,\"t\":{\"z\":1}},{\"name\":\"Al\",\"age\":2}],"
    "\"floats\":[1.0,1e20,1e16,123456789.123,1e-5,0.0001,-0.0,1E400],"
    "\"esc\":\"a\\\"b\\\\c\\n\\t\\u0001\\u00e9\\ud83d\\ude00\",\"u\":\"\\u00e4\\u00d6\\u65e5\"}";

static int render(const char *source, struct ds_bytes json, char **ret_text, struct ds_error *error)
{
    const struct ds_chat chat = { .variables_json = json };
    ds_cleanup(ds_template_free_p) struct ds_template *tmpl = NULL;
    size_t size;
    int r;

    error->text[0] = '\0';
    *ret_text = NULL;
    r = ds_template_new(&tmpl, bytes(source), error);
    if (r == 0)
        r = ds_template_render(tmpl, &chat, ret_text, &size, error);
    if (r == 0)
        assert_int_equal(strlen(*ret_text), size);
    else
        assert_true(error->text[0] != '\0');
    return r;
}

struct expectation {
    const char *source, *text;
};

static void expect_texts(const struct expectation *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ds_cleanup(ds_free_p) char *text = NULL;
        struct ds_error error;

        if (render(cases[i].source, bytes(variables), &text, &error) < 0)
            fail_msg("%s: %s", cases[i].source, error.text);
        if (strcmp(text, cases[i].text) != 0)
            fail_msg("%s\n   gave     '%s'\n   expected '%s'", cases[i].source, text,
                     cases[i].text);
    }
}

#define EXPECT_TEXTS(cases) expect_texts(cases, sizeof(cases) / sizeof((cases)[0]))

/* --- what the language can do --- */

static void white_space_goes_as_trim_and_lstrip_say(void **state)
{
    static const struct expectation cases[] = {
        { "line1\n  {% if true %}\n  in\n  {% endif %}\nend\n", "line1\n  in\nend" },
        { "a   {%- if true -%}   b   {%- endif %}   c", "ab   c" },
        { "  {# c #}\n x", " x" },
        { "a\n  {#- c -#}\n b", "ab" },
        { "{% if true %}\n\nx{% endif %}\n", "\nx" },
        { "\n{{ 1 }}\n\n", "\n1\n" },
        { "a\r\nb\rc{{ 2 }}\r\n", "a\nb\nc2" },
        { "x {% if true %}y{% endif %}\nz\n", "x yz" },
        { "\t{% set a=1 %}\t{{ a }}\n", "\t1" },
        { "{{- ' a ' -}}  b", " a b" },
        { "  {%+ if true %}a{% endif %}", "  a" },
        { "{% if true +%}\na{% endif %}", "\na" },
        { "y\n  {{- 'z' -}}   \nw", "yzw" },
        { "{% raw %}\n {{x}} \n{% endraw %}\nq", "\n {{x}} \nq" },
        { "  {%- raw -%}  {% if %}  {%- endraw -%} \n q", "{% if %}q" },
        { "{{ {'a': {'b': 1}}['a']['b'] }}", "1" },
        { "a\n{#- many\nlines #}\nb", "ab" },
        { "\xc2\xa0{%- if true %}\xe3\x80\x80{%- endif %}x", "x" },
        { "", "" },
        { "\n", "" },
        { "{", "{" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void values_print_as_python_does(void **state)
{
    static const struct expectation cases[] = {
        { "{{ x }}|{{ s }}|{{ n }}|{{ f }}|{{ no }}|{{ yes }}|{{ missing }}|", //
          "[3, 1, 2]|Hello World|5|1.5|None|True||" },
        { "{{ d }}", "{'b': 1, 'a': 2, 'C': [1, {'k': 'v'}]}" },
        { "{{ [1,'a',none,true,1.5,{'k':\"it's\"}] }}",
          "[1, 'a', None, True, 1.5, {'k': \"it's\"}]" },
        { "{{ (1,2) }}{{ (1,) }}{{ () }}", "(1, 2)(1,)()" },
        { "{{ ['a\\nb\\t\\\\'] }}", "['a\\nb\\t\\\\']" },
        { "{{ floats }}", "[1.0, 1e+20, 1e+16, 123456789.123, 1e-05, 0.0001, -0.0, inf]" },
        { "{{ big }}", "12345678901234567890123" },
        { "{{ 1e3 }}{{ 10.0 }}{{ 1_000 }}{{ 1.5e-3 }}", "1000.010.010000.0015" },
        { "{{ \"a\" \"b\" 'c' }}{{ '\\u00e9\\x41\\n\\'\\q' }}", "abc\xc3\xa9"
                                                                "A\n'\\q" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void json_is_written_as_transformers_does(void **state)
{
    static const struct expectation cases[] = {
        { "{{ d|tojson }}", "{\"b\": 1, \"a\": 2, \"C\": [1, {\"k\": \"v\"}]}" },
        { "{{ d|tojson(indent=2) }}", "{\n  \"b\": 1,\n  \"a\": 2,\n  \"C\": [\n    1,\n    {\n    "
                                      "  \"k\": \"v\"\n    }\n  ]\n}" },
        { "{{ []|tojson(indent=2) }}{{ {}|tojson(indent=2) }}", "[]{}" },
        { "{{ d|tojson(sort_keys=true) }}", "{\"C\": [1, {\"k\": \"v\"}], \"a\": 2, \"b\": 1}" },
        { "{{ {'b':1,'a':[1,2]}|tojson(separators=(',',':')) }}", "{\"b\":1,\"a\":[1,2]}" },
        { "{{ esc|tojson }}", "\"a\\\"b\\\\c\\n\\t\\u0001\xc3\xa9\xf0\x9f\x98\x80\"" },
        { "{{ esc|tojson(ensure_ascii=true) }}",
          "\"a\\\"b\\\\c\\n\\t\\u0001\\u00e9\\ud83d\\ude00\"" },
        { "{{ '</s>&\\'' |tojson }}", "\"</s>&'\"" },
        { "{{ floats|tojson }}",
          "[1.0, 1e+20, 1e+16, 123456789.123, 1e-05, 0.0001, -0.0, Infinity]" },
        { "{{ big|tojson }}{{ no|tojson }}{{ yes|tojson }}", "12345678901234567890123nulltrue" },
        { "{{ {1:2,none:(1,2)}|tojson }}", "{\"1\": 2, \"null\": [1, 2]}" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void loops_know_where_they_are(void **state)
{
    static const struct expectation cases[] = {
        { "{% for i in x %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}"
          "{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }},{% endfor %}",
          "1032TrueFalse3,2121FalseFalse3,3210FalseTrue3," },
        { "{% for i in x %}{{ loop.previtem }}{{ loop.nextitem }},{% endfor %}", "1,32,1," },
        { "{% for i in e %}a{% else %}empty{% endfor %}", "empty" },
        { "{% for i in missing %}a{% else %}none{% endfor %}", "none" },
        { "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "b=1;a=2;C=[1, {'k': 'v'}];" },
        { "{% for k in d %}{{ k }}{% endfor %}{% for c in u %}{{ c }}.{% endfor %}",
          "baC\xc3\xa4.\xc3\x96.\xe6\x97\xa5." },
        { "{% for i in x if i > 1 %}{{ loop.index }}:{{ i }}{{ loop.last }} {% endfor %}",
          "1:3False 2:2True " },
        { "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}"
          "{% break %}{% endif %}{{ i }}{% endfor %}",
          "023" },
        { "{% for i in [1,1,2] %}{{ loop.cycle('o','e') }}{{ loop.changed(i) }} {% endfor %}",
          "oTrue eFalse oTrue " },
        { "{% for a, (b, c) in [(1,(2,3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{{ loop is defined "
          "}}",
          "123False" },
        { "{{ range(2,10,3)|list }}{{ range(3,0,-1)|list }}{{ range(0)|list }}",
          "[2, 5, 8][3, 2, 1][]" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void names_live_in_their_scopes(void **state)
{
    static const struct expectation cases[] = {
        { "{% set a = 1 %}{% for i in x %}{{ a }}{% set a = 9 %}{{ a }}{% endfor %}{{ a }}",
          "1919191" },
        { "{% set ns = namespace(a=1) %}{% for i in x %}{% set ns.a = ns.a + i %}{% endfor %}"
          "{{ ns.a }}{{ ns.b is defined }}",
          "7False" },
        { "{% if true %}{% set z = 2 %}{% endif %}{{ z }}", "2" },
        { "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "21" },
        { "{% set t %} hi {{ n }} {% endset %}[{{ t }}]{% set t | upper | trim %} q {% endset %}{{ "
          "t }}",
          "[ hi 5 ]Q" },
        { "{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a is defined }}", "6False" },
        { "{% filter upper %}low {{ s }}{% endfilter %}", "LOW HELLO WORLD" },
        { "{% generation %}x{% endgeneration %}", "x" },
        { "{% macro m(a, b=2, c='z') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}"
          "{{ m(1) }}{{ m(1, 3) }}{{ m(a=5, c=6) }}{{ m() }}",
          "[12z][13z][526][2z]" },
        { "{% macro m() %}{{ varargs }}{{ kwargs }}{{ n }}{% endmacro %}{{ m(1, k=2) }}",
          "(1,){'k': 2}5" },
        { "{% macro f(i) %}{{ i }}{% if i %}{{ f(i - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
          "3210" },
        { "{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(z) m() %}in{{ z }}{{ n }}"
          "{% endcall %}",
          "<in15>" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void operators_follow_their_precedence(void **state)
{
    static const struct expectation cases[] = {
        { "{{ 1 + 2 * 3 }}{{ 7 / 2 }}{{ 7 // 2 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 2 ** 10 }}",
          "73.53-421024" },
        { "{{ 5 - 3 - 1 }} {{ 2 ** 3 ** 2 }} {{ 2 ** -1 }} {{ -7.5 % 2 }} {{ 7.5 // 2 }}",
          "1 64 0.5 0.5 3.0" },
        { "{{ 'ab' * 2 }}{{ 2 * [1] }}{{ [1] + [2] }}{{ (1,) + (2,) }}", "abab[1, 1][1, 2](1, 2)" },
        { "{{ 1 < 2 < 3 }}{{ 1 < 3 > 4 }}{{ 'a' < 'b' }}{{ 1 == 1.0 }}{{ true == 1 }}",
          "TrueFalseTrueTrueTrue" },
        { "{{ [1,2] == [1,2] }}{{ {'a':1} == {'a':1.0} }}{{ 'x' != 1 }}{{ [1,2] < [1,3] }}",
          "TrueTrueTrueTrue" },
        { "{{ 'a' in 'cat' }}{{ 2 in x }}{{ 'b' in d }}{{ 'z' not in d }}{{ not 2 in x }}",
          "TrueTrueTrueTrueFalse" },
        { "{{ 1 ~ 'a' ~ 2.5 ~ none }}{{ missing ~ 'q' }}", "1a2.5Noneq" },
        { "{{ 'a' if n > 10 else 'b' }}{{ 'a' if false }}{{ 1 if true else 2 if true else 3 }}",
          "b1" },
        { "{{ no or 'x' }}{{ n and 'y' }}{{ not no }}{{ 0 or [] }}", "xyTrue[]" },
        { "{{ -n|abs }}{{ 'a' ~ n|string ~ s|length }}{{ not n is none }}", "5a511True" },
        { "{{ x[0] }}{{ x[-1] }}{{ x[1:] }}{{ x[::-1] }}{{ x[:2] }}{{ x[7] }}{{ x[-10:2] }}",
          "32[1, 2][2, 1, 3][3, 1][3, 1]" },
        { "{{ s[0] }}{{ s[-3:] }}{{ s[::2] }}{{ u[1] }}{{ u[::-1] }}{{ x[2:0:-1] }}{{ x[5:] }}",
          "HrldHloWrd\xc3\x96\xe6\x97\xa5\xc3\x96\xc3\xa4[2, 1][]" },
        { "{{ d.b }}{{ d['b'] }}{{ d.C.1.k }}{{ d.C[0] }}{{ users.0.name }}{{ d.zz }}{{ no.x }}",
          "11v1bob" },
        { "{{ {'items': 3}['items'] }}{{ {'get': 1}.get('get') }}", "31" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void strings_have_their_methods(void **state)
{
    static const struct expectation cases[] = {
        { "{{ s.split() }}{{ s.split('o') }}{{ s.split('o', 1) }}{{ 'a,,b'.split(',') }}",
          "['Hello', 'World']['Hell', ' W', 'rld']['Hell', ' World']['a', '', 'b']" },
        { "{{ ' a b  c '.split() }}{{ ' a b  c '.split(none, 1) }}{{ ' a b  c '.rsplit(none, 1) }}",
          "['a', 'b', 'c']['a', 'b  c '][' a b', 'c']" },
        { "{{ s.rsplit('o', 1) }}{{ 'x'.split('</think>')[-1] }}", "['Hello W', 'rld']x" },
        { "{{ s.upper() }}{{ s.lower() }}{{ 'ab cd'.title() }}{{ s.capitalize() }}{{ u.upper() }}",
          "HELLO WORLDhello worldAb CdHello world\xc3\x84\xc3\x96\xe6\x97\xa5" },
        { "{{ s.startswith('He') }}{{ s.endswith(('x', 'ld')) }}{{ s.find('o') }}{{ s.rfind('o') }}"
          "{{ s.find('zz') }}{{ s.count('l') }}{{ u.find('\xe6\x97\xa5') }}",
          "TrueTrue47-132" },
        { "{{ s.replace('o', '0') }}{{ s.replace('o', '0', 1) }}{{ 'ab'.replace('', '-') }}",
          "Hell0 W0rldHell0 World-a-b-" },
        { "{{ '\\n\\t x \\n'.strip() }}|{{ 'xxaxx'.lstrip('x') }}|{{ 'xxaxx'.rstrip('xy') }}|"
          "{{ ' y '.lstrip() }}|",
          "x|axx|xxa|y |" },
        { "{{ 'a-b-c'.partition('-') }}{{ 'a-b-c'.rpartition('-') }}{{ 'x'.partition('-') }}",
          "('a', '-', 'b-c')('a-b', '-', 'c')('x', '', '')" },
        { "{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ 'a\\nb\\r\\nc'.splitlines() }}",
          "b['a', 'b', 'c']" },
        { "{{ '12'.isdigit() }}{{ 'a1'.isalnum() }}{{ 'a1'.isalpha() }}{{ ' '.isspace() }}",
          "TrueTrueFalseTrue" },
        { "{{ ','.join(['a', 'b']) }}{{ '{}-{}'.format(1, 'b') }}{{ '{1}{0}{x}{{'.format(1,2,x=3) "
          "}}",
          "a,b1-b213{" },
        { "{{ '%s is %d %.2f %5d|%-5d|%x %%' % ('a', 3, 2.5, 42, 7, 255) }}",
          "a is 3 2.50    42|7    |ff %" },
        { "{{ d.get('b') }}{{ d.get('zz') }}{{ d.get('zz', 9) }}{{ d.keys()|list }}"
          "{{ d.values()|list|length }}{{ [3,4].index(4) }}{{ [1,1].count(1) }}",
          "1None9['b', 'a', 'C']312" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void filters_do_their_work(void **state)
{
    static const struct expectation cases[] = {
        { "{{ x|length }}{{ s|count }}{{ u|length }}{{ d|length }}{{ missing|length }}", "311330" },
        { "{{ x|first }}{{ x|last }}{{ e|first }}{{ s|first }}{{ s|last }}", "32Hd" },
        { "{{ x|join }}{{ x|join(', ') }}{{ users|join(',', attribute='name') }}",
          "3123, 1, 2bob,Al" },
        { "{{ users|map(attribute='name')|join('/') }}{{ ['a','b']|map('upper')|list }}"
          "{{ users|map(attribute='t.z', default='-')|list }}",
          "bob/Al['A', 'B'][1, '-']" },
        { "{{ users|selectattr('age','equalto',2)|map(attribute='name')|list }}"
          "{{ users|rejectattr('t','defined')|list }}{{ x|select('gt',1)|list }}"
          "{{ x|reject('odd')|list }}{{ [0,1,'']|select|list }}",
          "['Al'][{'name': 'Al', 'age': 2}][3, 2][2][1]" },
        { "{{ x|sort }}{{ x|sort(reverse=true) }}{{ ['b','A','c']|sort }}{{ x|min }}{{ x|max }}"
          "{{ users|sort(attribute='age')|map(attribute='name')|list }}{{ x|sum }}",
          "[1, 2, 3][3, 2, 1]['A', 'b', 'c']13['Al', 'bob']6" },
        { "{{ [1,2,1,'a','A']|unique|list }}{{ x|reverse|list }}{{ s|reverse }}",
          "[1, 2, 'a'][2, 1, 3]dlroW olleH" },
        { "{{ {'b':1,'a':2}|dictsort }}{{ {'b':1,'a':2}|dictsort(by='value') }}{{ "
          "{'a':1}|items|list }}",
          "[('a', 2), ('b', 1)][('b', 1), ('a', 2)][('a', 1)]" },
        { "{{ missing|default('D') }}{{ ''|default('D') }}{{ ''|d('D', true) }}", "DD" },
        { "{{ '12'|int }}{{ '12.7'|int }}{{ 'z'|int }}{{ 'z'|int(7) }}{{ 3.9|int }}{{ '1.5'|float "
          "}}"
          "{{ '1f'|int(base=16) }}",
          "12120731.531" },
        { "{{ -3|abs }}{{ 2.567|round(2) }}{{ 2.5|round }}{{ 2.1|round(0, 'ceil') }}",
          "32.572.03.0" },
        { "{{ '<a>&'|escape }}{{ '<b>'|safe }}{{ 'a\\nb\\n\\nc'|indent }}{{ 'a\\nb'|indent(2, "
          "true) }}",
          "&lt;a&gt;&amp;<b>a\n    b\n\n    c  a\n  b" },
        { "{{ '  y '|trim }}|{{ 'xyx'|trim('x') }}|{{ s|upper|lower|title|replace('l','L') }}|"
          "{{ 'a b  c'|wordcount }}",
          "y|y|HeLLo WorLd|3" },
        { "{{ none|selectattr('a')|list }}{{ missing|map('upper')|list }}", "[][]" },
        { "{{ [1,2,3]|batch(2, 'x')|list }}{{ 42|string + 'a' }}{{ 'ab'|list }}",
          "[[1, 2], [3, 'x']]42a['a', 'b']" },
        { "{{ \"they're x-y\"|title }}{{ 'aBC'|capitalize }}", "They're X-YAbc" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

static void tests_tell_kinds_apart(void **state)
{
    static const struct expectation cases[] = {
        { "{{ n is defined }}{{ missing is defined }}{{ missing is undefined }}{{ no is none }}",
          "TrueFalseTrueTrue" },
        { "{{ d.zz is defined }}{{ d.b is defined }}{{ n is not none }}", "FalseTrueTrue" },
        { "{{ s is string }}{{ d is mapping }}{{ x is mapping }}{{ x is iterable }}{{ n is "
          "iterable }}",
          "TrueTrueFalseTrueFalse" },
        { "{{ n is number }}{{ n is integer }}{{ f is float }}{{ yes is boolean }}{{ yes is "
          "integer }}",
          "TrueTrueTrueTrueFalse" },
        { "{{ yes is true }}{{ yes is false }}{{ 1 is true }}{{ x is sequence }}",
          "TrueFalseFalseTrue" },
        { "{{ n is odd }}{{ n is even }}{{ n is divisibleby 5 }}{{ n is eq 5 }}{{ n is ge(6) }}",
          "TrueFalseTrueTrueFalse" },
        { "{{ n is in [5] }}{{ 'abc' is lower }}{{ 'Abc' is upper }}{{ n is sameas 5 }}",
          "TrueTrueFalseTrue" },
        { "{{ namespace is callable }}{{ missing == other }}{{ 'a' in missing }}",
          "TrueTrueFalse" },
    };

    (void) state;
    EXPECT_TEXTS(cases);
}

/* --- what is wrong --- */

static void faults_are_named(void **state)
{
    static const struct {
        const char *source;
        int code;
        const char *words;
    } cases[] = {
        { "a\nb{% if %}", -EBADMSG, "line 2: an expression was expected" },
        { "{{ }}", -EBADMSG, "an expression was expected" },
        { "{{ 'abc }}", -EBADMSG, "a string has no end" },
        { "{{ (1 }}", -EBADMSG, "a tag has no end" },
        { "{# x", -EBADMSG, "comment" },
        { "{% raw %}x", -EBADMSG, "endraw" },
        { "{% if x %}", -EBADMSG, "ends without 'endif'" },
        { "{% for i in x %}", -EBADMSG, "ends without 'endfor'" },
        { "{% endfor %}", -EBADMSG, "tag 'endfor'" },
        { "{% include 'x' %}", -EBADMSG, "tag 'include'" },
        { "{% for i in x recursive %}{% endfor %}", -EBADMSG, "recursive" },
        { "{{ f(a=1, 2) }}", -EBADMSG, "positional" },
        { "{{ 1 2 }}", -EBADMSG, "'}}' was expected" },
        { "{{ missing.x }}", -EBADMSG, "'missing' is undefined" },
        { "\n\n{{ d.q.r }}", -EBADMSG, "line 3: 'q' is undefined" },
        { "{{ missing + 'a' }}", -EBADMSG, "'missing' is undefined" },
        { "{{ 'a' + 1 }}", -EBADMSG, "'str' and 'int'" },
        { "{{ 1 < 'a' }}", -EBADMSG, "cannot be ordered" },
        { "{{ 1 / 0 }}{{ 1 }}", -EBADMSG, "division by zero" },
        { "{{ 9223372036854775807 + 1 }}", -EBADMSG, "too large" },
        { "{{ 99999999999999999999 }}", -EBADMSG, "too large" },
        { "{{ missing|tojson }}", -EBADMSG, "not JSON serializable" },
        { "{{ no|length }}", -EBADMSG, "no length" },
        { "{% for i in no %}{% endfor %}", -EBADMSG, "not iterable" },
        { "{{ foo() }}", -EBADMSG, "'foo' is undefined and cannot be called" },
        { "{{ x.append(1) }}", -EBADMSG, "'append' is undefined" },
        { "{{ n() }}", -EBADMSG, "not callable" },
        { "{{ s|nofilter }}", -EBADMSG, "no filter named 'nofilter'" },
        { "{{ s is notest }}", -EBADMSG, "no test named 'notest'" },
        { "{% set x.y = 1 %}", -EBADMSG, "only of a namespace" },
        { "{% for a, b in x %}{% endfor %}", -EBADMSG, "not iterable" },
        { "{% set a, b = [1] %}", -EBADMSG, "not enough values" },
        { "{% set a, b = [1,2,3] %}", -EBADMSG, "too many values" },
        { "{{ {[1]: 2} }}", -EBADMSG, "cannot be a key" },
        { "{{ raise_exception('Roles must alternate!') }}", -EINVAL, "Roles must alternate!" },
        { "{{ '%d' % 'x' }}", -EBADMSG, "wants a number" },
        { "{{ '%n' % 1 }}", -EBADMSG, "unknown conversion" },
        { "{{ '%s' % () }}", -EBADMSG, "not enough arguments" },
        { "{{ x|map|list }}", -EBADMSG, "map wants" },
        { "{{ s.split('') }}", -EBADMSG, "separator" },
        { "{{ n[1:] }}", -EBADMSG, "cannot be sliced" },
        { "{{ 'a' % 1 }}", -EBADMSG, "more arguments" },
        { "{{ missing|int }}", -EBADMSG, "'missing' is undefined" },
    };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ds_cleanup(ds_free_p) char *text = NULL;
        struct ds_error error;
        int r = render(cases[i].source, bytes(variables), &text, &error);

        if (r != cases[i].code || !strstr(error.text, cases[i].words))
            fail_msg("%s: %d '%s', expected %d '%s'", cases[i].source, r, error.text, cases[i].code,
                     cases[i].words);
    }
}

static void messages_that_are_no_json_are_refused(void **state)
{
    static const char *const bad[] = { "{",         "[1]",         "{\"a\":}",    "{\"a\":1,}",
                                       "{a:1}",     "{\"a\":01x}", "{\"a\":1} 2", "{\"a\":\"\\q\"}",
                                       "{\"a\":-}", "{\"a\":1e}",  "{\"a\":\"x}", "nul" };
    struct ds_error error;
    char *text;

    (void) state;
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (render("x", bytes(bad[i]), &text, &error) != -EINVAL)
            fail_msg("%s was taken", bad[i]);
        assert_non_null(strstr(error.text, "template variables"));
    }
}

/* --- hostile templates --- */

static void expect_bounded(const char *source, struct ds_bytes json)
{
    uint64_t start = ds_now_nsec();
    ds_cleanup(ds_free_p) char *text = NULL;
    struct ds_error error;
    int r = render(source, json, &text, &error);

    if (r != -E2BIG && r != -EBADMSG)
        fail_msg("%.80s: %d", source, r);
    if (ds_now_nsec() - start > 60ull * 1000000000u) /* generous: sanitizers, a busy machine */
        fail_msg("%.80s took too long", source);
}

static void endless_work_ends(void **state)
{
    static const char *const sources[] = {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) "
        "}}",
        "{{ 'x' * 99999999999 }}",
        "{{ ('x' * 1000000) * 1000000 }}",
        "{{ [1] * 99999999999 }}",
        "{{ [[1] * 1000000] * 1000000 }}",
        "{{ range(99999999) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
        "{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}"
        "{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}"
        "{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}"
        "{% endfor %}{{ ns.l|tojson }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}"
        "{% endfor %}{{ ns.l == [ns.l] }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l|tojson }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
        "{% endfor %}{{ ns.l == ns.l }}",
        "{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{% if t + 'b' in t %}{% endif %}"
        "{% endfor %}",
        "{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{% if t.upper() == t %}{% endif %}"
        "{% endfor %}",
        "{% set t = 'ab' * 500000 %}{% for i in range(999) %}{% set q = t.split('a') %}{% endfor "
        "%}",
        "{% set t = 'ab' * 500000 %}{{ t.replace('a', t) }}",
        "{% set t = ('a' * 999 + 'b') * 999 %}{% for i in range(99999) %}{% set q = t.rfind('b' * "
        "500) %}"
        "{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 'a'|indent(99999999) }}",
        "{{ [[]]|tojson(indent=99999999) }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|tojson }}",
        "{% set d = namespace(x={}) %}{% for i in range(99999) %}{% set d.x = dict(d.x, **{}) %}"
        "{% endfor %}",
    };

    (void) state;
    for (unsigned i = 0; i < sizeof sources / sizeof sources[0]; i++)
        expect_bounded(sources[i], bytes("{}"));
}

/* n times piece, then middle, then n times tail. */
static char *nest(const char *piece, const char *middle, const char *tail, unsigned n)
{
    size_t size = n * (strlen(piece) + strlen(tail)) + strlen(middle) + 1;
    char *text = malloc(size), *to = text;

    assert_non_null(text);
    for (unsigned i = 0; i < n; i++)
        to = stpcpy(to, piece);
    to = stpcpy(to, middle);
    for (unsigned i = 0; i < n; i++)
        to = stpcpy(to, tail);
    return text;
}

static void deep_nesting_is_refused(void **state)
{
    static const struct {
        const char *piece, *middle, *tail;
    } cases[] = {
        { "{% if true %}", "x", "{% endif %}" },
        { "{% for i in [1] %}", "x", "{% endfor %}" },
        { "{{ 1", "}}", "" },
        { "{% filter upper %}", "x", "{% endfilter %}" },
    };
    static const struct {
        const char *open, *middle, *close;
    } expressions[] = {
        { "(", "1", ")" },         { "[", "1", "]" },
        { "{1:", "1", "}" },       { "-", "1", "" },
        { "not ", "1", "" },       { "1+(", "1", ")" },
        { "x[", "1", "]" },        { "f(", "1", ")" },
        { "1 if ", "1", "" },      { "1 if 1 else ", "1", "" },
        { "1 is eq [", "1", "]" },
    };
    static const char *const chains[] = { "+1",       "|int",   ".a",  "[0]",  "()",
                                          " is none", " and 1", "**1", " if 1" };

    (void) state;
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ds_cleanup(ds_free_p) char *source =
            nest(cases[i].piece, cases[i].middle, cases[i].tail, 5000);

        expect_bounded(source, bytes("{}"));
    }
    for (unsigned i = 0; i < sizeof expressions / sizeof expressions[0]; i++) {
        ds_cleanup(ds_free_p) char *inner =
            nest(expressions[i].open, expressions[i].middle, expressions[i].close, 20000);
        ds_cleanup(ds_free_p) char *source = NULL;

        assert_true(asprintf(&source, "{{ %s }}", inner) > 0);
        expect_bounded(source, bytes("{}"));
    }
    for (unsigned i = 0; i < sizeof chains / sizeof chains[0]; i++) {
        ds_cleanup(ds_free_p) char *inner = nest(chains[i], "", "", 20000);
        ds_cleanup(ds_free_p) char *source = NULL;

        assert_true(asprintf(&source, "{{ 1%s }}", inner) > 0);
        expect_bounded(source, bytes("{}"));
    }
}

static void deep_and_repetitive_json_is_refused(void **state)
{
    ds_cleanup(ds_free_p) char *lists = nest("[", "", "]", 100000);
    ds_cleanup(ds_free_p) char *deep = NULL;
    ds_cleanup(ds_free_p) char *wide = malloc(4 << 20);
    char *to = wide;

    (void) state;
    assert_true(asprintf(&deep, "{\"a\":%s}", lists) > 0);
    expect_bounded("x", bytes(deep));
    assert_non_null(wide);
    to = stpcpy(to, "{\"\":0");
    for (unsigned i = 0; i < 200000; i++)
        to += sprintf(to, ",\"%x\":0", i);
    (void) stpcpy(to, "}");
    expect_bounded("x", bytes(wide));
}

static void long_conversations_render_in_linear_memory(void **state)
{
    static const char source[] =
        "{% set ns = namespace(system='') %}{% for m in messages %}{% set ns.system = ns.system + "
        "m['content'] + '\\n' %}{{ '<' + m.role + '>' + m['content'] | trim + '\\n' }}{% endfor %}"
        "{{ ns.system | length }}";
    struct ds_chat_message *messages = calloc(4096, sizeof *messages);
    struct ds_chat chat = { .messages = messages, .n_messages = 4096 };
    ds_cleanup(ds_template_free_p) struct ds_template *tmpl = NULL;
    ds_cleanup(ds_free_p) char *content = nest("word ", "", "", 200);
    struct ds_error error;
    char *text;
    size_t size;

    (void) state;
    assert_non_null(messages);
    for (unsigned i = 0; i < 4096; i++)
        messages[i] = (struct ds_chat_message){ .role = "user", .content = bytes(content) };
    assert_int_equal(ds_template_new(&tmpl, bytes(source), &error), 0);
    if (ds_template_render(tmpl, &chat, &text, &size, &error) < 0)
        fail_msg("%s", error.text);
    assert_int_equal(size, 4096 * (6 + 999 + 1) + 7);
    free(text);
    free(messages);
}

/* --- what the template sees --- */

static void messages_tools_and_tokens_reach_the_template(void **state)
{
    static const char source[] =
        "{{ bos_token }}{{ messages[0].role }}:{{ messages[0].content }}:{{ messages[0].name }};"
        "{{ messages[1].content is none }}{{ messages[1].tool_calls[0].id }};{{ messages[1]|tojson "
        "}};"
        "{{ tools|length }}{{ add_generation_prompt }}{{ extra }}{{ eos_token is defined }}";
    const struct ds_chat_message messages[] = {
        { .role = "user", .content = { "a\0b", 3 }, .name = "Eve" },
        { .role = "assistant",
          .extra_json = bytes("{\"content\":null,\"tool_calls\":[{\"id\":7}]}") },
    };
    const struct ds_chat chat = { .messages = messages,
                                  .n_messages = 2,
                                  .tools_json = bytes("[{}, {}]"),
                                  .variables_json = bytes("{\"extra\":\"E\"}"),
                                  .add_generation_prompt = true,
                                  .bos_text = bytes("<s>") };
    static const char expected[] =
        "<s>user:a\0b:Eve;True7;{\"role\": \"assistant\", \"content\": null, \"tool_calls\": "
        "[{\"id\": 7}]};2TrueEFalse";
    ds_cleanup(ds_template_free_p) struct ds_template *tmpl = NULL;
    struct ds_error error;
    char *text;
    size_t size;

    (void) state;
    assert_int_equal(ds_template_new(&tmpl, bytes(source), &error), 0);
    for (int round = 0; round < 2; round++) { /* rendering leaves the template as it was */
        if (ds_template_render(tmpl, &chat, &text, &size, &error) < 0)
            fail_msg("%s", error.text);
        assert_int_equal(size, sizeof expected - 1);
        assert_memory_equal(text, expected, size);
        free(text);
    }
}

/* --- golden renders --- */

static struct ds_bytes json_text(const cJSON *item)
{
    char *text = item && !cJSON_IsNull(item) ? cJSON_PrintUnformatted(item) : NULL;

    return text ? bytes(text) : (struct ds_bytes){ NULL, 0 };
}

static struct ds_bytes member_text(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);

    return bytes(cJSON_IsString(item) ? item->valuestring : "");
}

static void fill_message(struct ds_chat_message *message, cJSON *object)
{
    cJSON *rest = cJSON_Duplicate(object, true);

    message->role = member_text(object, "role").data;
    message->content = member_text(object, "content");
    cJSON_DeleteItemFromObjectCaseSensitive(rest, "role");
    if (cJSON_IsString(cJSON_GetObjectItemCaseSensitive(rest, "content")))
        cJSON_DeleteItemFromObjectCaseSensitive(rest, "content");
    message->extra_json = json_text(rest);
    cJSON_Delete(rest);
}

static int render_golden(const cJSON *line, char **ret_text, size_t *ret_size,
                         struct ds_error *error)
{
    cJSON *list = cJSON_GetObjectItemCaseSensitive(line, "messages"), *item;
    struct ds_chat_message messages[64] = { 0 };
    struct ds_chat chat = { .messages = messages };
    ds_cleanup(ds_template_free_p) struct ds_template *tmpl = NULL;
    ds_cleanup(ds_free_p) char *path = NULL;
    ds_cleanup(ds_free_p) char *source = NULL;
    int r;

    assert_true(asprintf(&path, "%s/chat/templates/%s.jinja", ds_golden_path(),
                         member_text(line, "template").data) > 0);
    source = ds_golden_read(path, NULL);
    assert_non_null(source);
    cJSON_ArrayForEach(item, list)
    {
        assert_true(chat.n_messages < 64);
        fill_message(&messages[chat.n_messages++], item);
    }
    chat.tools_json = json_text(cJSON_GetObjectItemCaseSensitive(line, "tools"));
    chat.variables_json = json_text(cJSON_GetObjectItemCaseSensitive(line, "extra"));
    chat.add_generation_prompt =
        cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(line, "add_generation_prompt"));
    chat.bos_text = member_text(line, "bos_token");
    chat.eos_text = member_text(line, "eos_token");
    r = ds_template_new(&tmpl, bytes(source), error);
    if (r == 0)
        r = ds_template_render(tmpl, &chat, ret_text, ret_size, error);
    for (size_t i = 0; i < chat.n_messages; i++)
        free((char *) messages[i].extra_json.data);
    free((char *) chat.tools_json.data);
    free((char *) chat.variables_json.data);
    return r;
}

static void every_golden_render_is_exact(void **state)
{
    ds_cleanup(ds_free_p) char *path = ds_golden_file("chat/chat.jsonl");
    ds_cleanup(ds_free_p) char *lines = path ? ds_golden_read(path, NULL) : NULL;
    unsigned n = 0;
    char *save = NULL;

    (void) state;
    if (!lines) {
        ds_golden_skip("rendering of real chat templates");
        return;
    }
    for (char *text = strtok_r(lines, "\n", &save); text; text = strtok_r(NULL, "\n", &save), n++) {
        cJSON *line = cJSON_Parse(text);
        const cJSON *refusal = cJSON_GetObjectItemCaseSensitive(line, "error");
        ds_cleanup(ds_free_p) char *got = NULL;
        struct ds_error error = { "" };
        size_t size = 0;
        int r = render_golden(line, &got, &size, &error);

        if (refusal && (r != -EINVAL || !strstr(error.text, refusal->valuestring)))
            fail_msg("line %u: %d '%s', expected '%s'", n + 1, r, error.text, refusal->valuestring);
        if (!refusal && (r < 0 || strcmp(got, member_text(line, "expected").data) != 0))
            fail_msg("line %u: %s\n%s\nexpected\n%s", n + 1, error.text, got ? got : "",
                     member_text(line, "expected").data);
        cJSON_Delete(line);
    }
    assert_true(n > 300);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(white_space_goes_as_trim_and_lstrip_say),
        cmocka_unit_test(values_print_as_python_does),
        cmocka_unit_test(json_is_written_as_transformers_does),
        cmocka_unit_test(loops_know_where_they_are),
        cmocka_unit_test(names_live_in_their_scopes),
        cmocka_unit_test(operators_follow_their_precedence),
        cmocka_unit_test(strings_have_their_methods),
        cmocka_unit_test(filters_do_their_work),
        cmocka_unit_test(tests_tell_kinds_apart),
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(messages_that_are_no_json_are_refused),
        cmocka_unit_test(endless_work_ends),
        cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(deep_and_repetitive_json_is_refused),
        cmocka_unit_test(long_conversations_render_in_linear_memory),
        cmocka_unit_test(messages_tools_and_tokens_reach_the_template),
        cmocka_unit_test(every_golden_render_is_exact),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
